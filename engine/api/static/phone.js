// The phone page's logic, and the AudioWorklet it records and plays with: the same file is loaded twice, into the page and into
// the audio thread. The page speaks the OpenAI Realtime protocol of /v1/realtime, nothing of its own.
//
// - 24 kHz pcm16 up in packets of 40 ms; down it is queued sample by sample and can be cut at once. Firefox records only at the rate
//   of the device: what is heard is then brought to 24 kHz in the audio thread.
// - Barge-in: on speech_started the queue is cleared, and the item is truncated to what was really played.
// - A picture from the camera becomes part of what the user says next.
// - Chinese where the browser is; messages of the server are English.

const RATE = 24000;
const PACKET = 960; // samples: 40 ms
const LOBES = 8; // of the resampling filter, on each side
const PICTURE = 512; // pixels of a picture's longer side: the model sees 256
const WORDS = {
  en: { idle: "Ready", connecting: "Connecting…", listening: "Listening", thinking: "Thinking…", speaking: "Speaking",
    call: "Call", mute: "Mute", show: "Show", hangup: "Hang up", interrupting: "let me interrupt", voicing: "voice",
    insecure: "This browser gives a page the microphone only over https or on this machine's own address.\n" +
      "Open http://127.0.0.1 on the machine itself, or start the server with --ssl-certfile and --ssl-keyfile.",
    denied: "The microphone was denied. Allow it for this page (the icon beside the address), then call again.",
    unusable: "There is no usable microphone. Connect one, then call again.",
    blind: "There is no camera to use, or it was denied: allow it for this page.", ended: "The server ended the call." },
  zh: { idle: "就绪", connecting: "连接中…", listening: "正在听", thinking: "思考中…", speaking: "正在说",
    call: "拨打", mute: "静音", show: "拍照", hangup: "挂断", interrupting: "允许打断", voicing: "音色",
    insecure: "浏览器只在 https 或本机地址上允许网页使用麦克风。\n" +
      "请在本机打开 http://127.0.0.1，或用 --ssl-certfile 和 --ssl-keyfile 启动服务器。",
    denied: "麦克风被拒绝。请允许此网页使用麦克风（地址栏旁的图标），然后重新拨打。",
    unusable: "没有可用的麦克风。请连接后重新拨打。",
    blind: "没有可用的摄像头，或未被允许。", ended: "服务器结束了通话。" },
};

if (typeof AudioWorkletProcessor !== "undefined") {
  registerProcessor("phone", class extends AudioWorkletProcessor {
    constructor() {
      super();
      this.step = sampleRate / RATE; // of the device's samples for each one of ours
      this.heard = new Float32Array(0); // the last samples of the device
      this.next = 0; // where in them our next sample lies
      this.queue = []; // {item, samples, at}
      this.packet = new Float32Array(PACKET);
      this.filled = 0;
      this.port.onmessage = ({ data }) => {
        if (data.clear) this.queue = [];
        else this.queue.push({ item: data.item, samples: data.samples, at: 0 });
      };
    }

    process([input], [output]) {
      const played = new Map(); // item -> samples
      const out = output[0];
      for (let i = 0; i < out.length && this.queue.length;) {
        const head = this.queue[0];
        const count = Math.min(out.length - i, head.samples.length - head.at);
        out.set(head.samples.subarray(head.at, head.at + count), i);
        i += count;
        head.at += count;
        played.set(head.item, (played.get(head.item) || 0) + count);
        if (head.at === head.samples.length) this.queue.shift();
      }
      for (const [item, count] of played) this.port.postMessage({ item, count, idle: !this.queue.length });
      for (const sample of this.resampled(input[0] || [])) {
        this.packet[this.filled++] = sample;
        if (this.filled === PACKET) {
          this.port.postMessage({ packet: this.packet });
          this.packet = new Float32Array(PACKET);
          this.filled = 0;
        }
      }
      return true;
    }

    resampled(input) { // by a sinc under a raised cosine, cut off at the lower of the two rates' limits
      if (this.step === 1) return input;
      const cut = Math.max(1, this.step), half = LOBES * cut, out = [];
      const heard = new Float32Array(this.heard.length + input.length);
      heard.set(this.heard);
      heard.set(input, this.heard.length);
      for (; this.next + half < heard.length; this.next += this.step) {
        let sum = 0, weights = 0;
        for (let i = Math.max(0, Math.ceil(this.next - half)); i <= this.next + half; i++) {
          const x = Math.PI * (i - this.next) / cut;
          const weight = (x ? Math.sin(x) / x : 1) * (1 + Math.cos(x / LOBES));
          sum += weight * heard[i];
          weights += weight;
        }
        out.push(sum / weights);
      }
      const done = Math.max(0, Math.floor(this.next - half));
      this.heard = heard.slice(done);
      this.next -= done;
      return out;
    }
  });
} else {
  startPage();
}

function startPage() {
  const element = (id) => document.getElementById(id);
  const words = WORDS[(navigator.language || "en").startsWith("zh") ? "zh" : "en"];
  let call = null; // everything that belongs to the call that is going on

  function show(state) {
    document.body.dataset.state = state;
    element("state").textContent = words[state];
    const calling = state !== "idle";
    element("call").hidden = calling;
    element("mute").hidden = element("show").hidden = element("hangup").hidden = !calling;
  }

  function complain(text) { element("message").textContent = text; }

  function caption(key, role, text, append) {
    let line = call.captions.get(key);
    if (!line) {
      line = document.createElement("p");
      line.className = role;
      element("captions").append(line);
      call.captions.set(key, line);
    }
    line.textContent = append ? line.textContent + text : text;
    line.hidden = !line.textContent;
    element("captions").scrollTop = element("captions").scrollHeight;
  }

  async function dial() {
    complain("");
    if (!window.isSecureContext || !navigator.mediaDevices) {
      return complain(words.insecure);
    }
    call = { captions: new Map(), played: new Map(), current: null, muted: false, responding: false };
    const mine = call; // a hang-up while we wait for permission must not be undone by what follows
    element("captions").replaceChildren();
    show("connecting");
    try {
      mine.stream = await navigator.mediaDevices.getUserMedia({ audio: {
        channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true } });
    } catch (error) {
      hangUp();
      return complain(error.name === "NotAllowedError" ? words.denied : `${words.unusable} (${error.name})`);
    }
    mine.stream.getTracks().forEach((track) => { track.onended = () => lost(mine, words.unusable); });
    mine.audio = await sounding(mine, { sampleRate: RATE });
    if (call !== mine) return release(mine);
    mine.node = worklet(mine.audio);
    mine.node.connect(mine.audio.destination);
    try {
      mine.audio.createMediaStreamSource(mine.stream).connect(mine.node);
    } catch (error) {
      if (error.name !== "NotSupportedError") throw error;
      mine.ear = await sounding(mine);
      if (call !== mine) return release(mine);
      const listening = worklet(mine.ear);
      mine.ear.createMediaStreamSource(mine.stream).connect(listening);
      listening.connect(mine.ear.destination); // it plays silence, but what leads nowhere may not run
    }
    await stayAwake();
    mine.socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/realtime`, ["realtime"]);
    mine.socket.onmessage = ({ data }) => { if (call === mine) received(JSON.parse(data)); };
    mine.socket.onclose = () => lost(mine, words.ended);
  }

  async function sounding(mine, options) { // a running AudioContext with our audio thread
    const audio = new AudioContext(options), running = audio.resume(); // now: later is too long after the tap for Safari
    await Promise.all([running, audio.audioWorklet.addModule("phone.js")]);
    audio.onstatechange = () => { if (call === mine && audio.state !== "closed") wake(audio); }; // a telephone call stops it
    return audio;
  }

  function worklet(audio) {
    const node = new AudioWorkletNode(audio, "phone", { outputChannelCount: [1] });
    node.port.onmessage = ({ data }) => (data.packet ? recorded(data.packet) : played(data));
    return node;
  }

  function wake(audio) { audio.resume().catch(() => {}); } // still interrupted: the next change of its state, or of the page's, tries again

  async function stayAwake() { // a screen that locks takes the microphone with it
    if (!call || document.visibilityState !== "visible") return;
    for (const audio of [call.audio, call.ear]) if (audio && audio.state !== "running") wake(audio);
    const mine = call, lock = await navigator.wakeLock?.request("screen").catch(() => null); // refused when the battery is low
    if (call !== mine) return lock?.release();
    mine.lock?.release();
    mine.lock = lock;
  }

  function lost(mine, why) {
    if (call !== mine) return;
    if (!element("message").textContent) complain(why);
    hangUp();
  }

  function send(type, fields) {
    if (call.socket && call.socket.readyState === WebSocket.OPEN) call.socket.send(JSON.stringify({ type, ...fields }));
  }

  function configure() {
    const output = element("voice").value ? { output: { voice: element("voice").value } } : {};
    send("session.update", { session: { type: "realtime", output_modalities: ["audio"], audio: { ...output, input: {
      format: { type: "audio/pcm", rate: RATE }, transcription: { model: "built-in" },
      turn_detection: { type: "server_vad", interrupt_response: element("interrupt").checked } } } } });
  }

  function received(event) {
    switch (event.type) {
      case "session.created":
        call.began = Date.now();
        call.ticking = setInterval(tick, 250);
        configure();
        return show("listening");
      case "input_audio_buffer.speech_started":
        if (element("interrupt").checked) interrupt();
        return;
      case "input_audio_buffer.committed":
        caption(event.item_id, "user", "…"); // its words may come after those of the reply
        return show("thinking");
      case "conversation.item.input_audio_transcription.completed":
        return caption(event.item_id, "user", event.transcript);
      case "conversation.item.input_audio_transcription.failed":
        return caption(event.item_id, "user", "");
      case "response.created":
        call.responding = true;
        return show("thinking");
      case "response.output_item.added":
        call.current = event.item.id;
        return;
      case "response.output_audio_transcript.delta":
        return caption(event.item_id, "model", event.delta, true);
      case "response.output_audio.delta":
        show("speaking");
        return play(event.item_id, event.delta);
      case "response.done":
        call.responding = false;
        if (event.response.status === "failed") complain(event.response.status_details.error.message);
        if (!call.pending) show("listening");
        return;
      case "error":
        return complain(event.error.message);
    }
  }

  function play(item, base64) {
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    const samples = Float32Array.from({ length: bytes.length / 2 }, (_, i) => view.getInt16(2 * i, true) / 32768);
    call.pending = true; // sound that has not been played
    call.current = item;
    call.node.port.postMessage({ item, samples });
  }

  function played({ item, count, idle }) {
    if (!call) return;
    call.played.set(item, (call.played.get(item) || 0) + count);
    if (idle) {
      call.pending = false;
      if (!call.responding) show("listening");
    }
  }

  function interrupt() {
    if (call.pending) {
      call.node.port.postMessage({ clear: true });
      call.pending = false;
      send("conversation.item.truncate", { item_id: call.current, content_index: 0,
        audio_end_ms: Math.floor(1000 * (call.played.get(call.current) || 0) / RATE) });
    }
    show("listening");
  }

  function recorded(packet) {
    if (!call) return;
    const peak = call.muted ? 0 : packet.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
    element("level").style.transform = `scaleX(${Math.min(1, Math.sqrt(peak))})`;
    const bytes = new Uint8Array(2 * packet.length);
    const view = new DataView(bytes.buffer);
    // a muted call sends silence: time must go on for a turn to end
    packet.forEach((x, i) => view.setInt16(2 * i, call.muted ? 0 : Math.max(-32768, Math.min(32767, Math.round(32768 * x))), true));
    send("input_audio_buffer.append", { audio: btoa(String.fromCharCode(...bytes)) });
  }

  async function showPicture() {
    const mine = call;
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch (error) {
      return complain(words.blind);
    }
    const video = document.createElement("video"), canvas = document.createElement("canvas");
    video.muted = video.playsInline = true;
    video.srcObject = stream;
    await video.play();
    const scale = Math.min(1, PICTURE / Math.max(video.videoWidth, video.videoHeight));
    canvas.width = scale * video.videoWidth;
    canvas.height = scale * video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    stream.getTracks().forEach((track) => track.stop());
    if (call !== mine) return;
    const image = document.createElement("img");
    image.src = canvas.toDataURL("image/jpeg", 0.85);
    element("captions").append(image);
    send("conversation.item.create", { item: { type: "message", role: "user",
      content: [{ type: "input_image", image_url: image.src }] } });
  }

  async function listVoices() {
    const response = await fetch("v1/voices");
    for (const { id } of (await response.json()).data) {
      const option = document.createElement("option");
      option.value = option.textContent = id;
      element("voice").append(option);
    }
  }

  function tick() {
    const seconds = Math.floor((Date.now() - call.began) / 1000);
    element("timer").textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  }

  function release(ended) {
    clearInterval(ended.ticking);
    if (ended.socket) ended.socket.close();
    if (ended.stream) ended.stream.getTracks().forEach((track) => track.stop());
    if (ended.lock) ended.lock.release();
    for (const audio of [ended.audio, ended.ear]) if (audio && audio.state !== "closed") audio.close();
  }

  function hangUp() {
    const ended = call;
    call = null;
    if (ended) release(ended);
    element("level").style.transform = "scaleX(0)";
    element("mute").setAttribute("aria-pressed", "false");
    show("idle");
  }

  element("call").onclick = () => dial().catch((error) => { hangUp(); complain(`The call could not be made: ${error.message}`); });
  element("hangup").onclick = hangUp;
  element("mute").onclick = () => {
    call.muted = !call.muted;
    element("mute").setAttribute("aria-pressed", String(call.muted));
  };
  element("show").onclick = () => showPicture().catch((error) => complain(error.message));
  element("interrupt").onchange = element("voice").onchange = () => { if (call) configure(); };
  document.addEventListener("visibilitychange", stayAwake); // the system has let go of the screen while the page was hidden
  for (const id of ["call", "mute", "show", "hangup", "interrupting", "voicing"]) element(id).textContent = words[id];
  element("state").textContent = words.idle;
  listVoices().catch((error) => complain(error.message));
}
