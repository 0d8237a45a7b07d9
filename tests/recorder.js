// Put into a page before its own scripts: records, sample by sample on one clock, what it plays (left) and what its microphone hears
// (right), and notes the Realtime events it receives. recorded() gives both channels as pcm16 in base64.
(() => {
  const code = `registerProcessor("recorder", class extends AudioWorkletProcessor {
    process([out, mic]) {
      const empty = new Float32Array(128);
      this.port.postMessage([(out[0] || empty).slice(), (mic[0] || empty).slice()]);
      return true;
    } });`;
  const connect = AudioNode.prototype.connect;
  const parts = [[], []], making = new Map();
  window.events = [];
  function recorder(context) {
    if (!making.has(context)) {
      making.set(context, context.audioWorklet.addModule(`data:text/javascript;base64,${btoa(code)}`).then(() => {
        const node = new AudioWorkletNode(context, "recorder", { numberOfInputs: 2 });
        node.port.onmessage = ({ data }) => data.forEach((samples, i) => parts[i].push(samples));
        connect.call(node, context.destination);
        return node;
      }));
    }
    return making.get(context);
  }
  AudioNode.prototype.connect = function (target, ...rest) {
    const channel = target instanceof AudioDestinationNode ? 0 : this instanceof MediaStreamAudioSourceNode ? 1 : null;
    if (channel !== null) recorder(this.context).then((node) => connect.call(this, node, 0, channel));
    return connect.call(this, target, ...rest);
  };
  const Socket = window.WebSocket;
  window.WebSocket = class extends Socket {
    constructor(...args) {
      super(...args);
      if (args[0].endsWith("/v1/realtime")) this.addEventListener("message", ({ data }) => window.events.push(JSON.parse(data)));
    }
  };
  window.recorded = () => parts.map((channel) => {
    const bytes = new Uint8Array(256 * channel.length), view = new DataView(bytes.buffer);
    channel.forEach((samples, i) => samples.forEach((x, j) => view.setInt16(256 * i + 2 * j, Math.round(32768 * x), true)));
    let text = "";
    for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
    return btoa(text);
  });
})();
