"""Every word of the web page, in English and Chinese; the browser's language decides."""

ENGLISH = {
    "chat": "Chat", "phone": "Phone", "voices": "Voices", "ask": "Ask something, or record, or add a picture…", "stop": "Stop",
    "new": "New talk", "settings": "Settings", "voice": "Voice", "no_voice": "none", "temperature": "Temperature", "model": "Model",
    "speak": "Speak the reply", "examples": "Examples", "talk": "Conversation",
    "clone_title": "Clone a voice", "clip": "1 to 30 seconds of speech: record it, or choose a file", "name": "Name",
    "consent": "The person whose voice this is has agreed to its being cloned.", "enrol": "Enrol", "cloned": "Cloned voices",
    "delete": "Delete",
}
CHINESE = {
    "chat": "聊天", "phone": "电话", "voices": "音色", "ask": "输入问题，或录音，或添加图片…", "stop": "停止",
    "new": "新对话", "settings": "设置", "voice": "音色", "no_voice": "无", "temperature": "温度", "model": "模型",
    "speak": "朗读回答", "examples": "示例", "talk": "对话",
    "clone_title": "克隆音色", "clip": "1 到 30 秒的语音：录音或选择文件", "name": "名称",
    "consent": "声音的主人已同意克隆其声音。", "enrol": "登记", "cloned": "已克隆的音色",
    "delete": "删除",
}
