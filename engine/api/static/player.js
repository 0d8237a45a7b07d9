// Plays speech while it is generated, inside the web page's player component (js_on_load of a gr.HTML: element, props, watch).
// Its value is {turn, seq, pcm}: 80 ms frames of 24 kHz pcm16 in base64; a new turn silences the one before. The AudioWorklet is
// the phone page's.
const bar = element.querySelector(".bar"), clock = element.querySelector(".clock");
const player = { turn: null, received: 0, played: 0, silenced: null };
let node = null; // a promise of the AudioWorkletNode

async function start() {
  const audio = new AudioContext({ sampleRate: 24000 });
  await Promise.all([audio.resume(), audio.audioWorklet.addModule("phone.js")]);
  const worklet = new AudioWorkletNode(audio, "phone", { outputChannelCount: [1] });
  worklet.port.onmessage = ({ data }) => {
    if (data.item !== player.turn) return;
    player.played += data.count;
    show();
  };
  worklet.connect(audio.destination);
  return worklet;
}

function ready() {
  return node ??= start().catch((error) => {
    node = null; // the next frame, or tap, tries again
    throw error;
  });
}

function show() {
  bar.style.transform = `scaleX(${player.received ? player.played / player.received : 0})`;
  clock.textContent = `${(player.played / 24000).toFixed(1)} s`;
}

async function take({ turn, pcm }) {
  if (!turn || turn === player.silenced) return;
  const fresh = turn !== player.turn;
  if (fresh) Object.assign(player, { turn, received: 0, played: 0 });
  const bytes = Uint8Array.from(atob(pcm), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const samples = Float32Array.from({ length: bytes.length / 2 }, (_, i) => view.getInt16(2 * i, true) / 32768);
  player.received += samples.length;
  const { port } = await ready();
  if (turn === player.silenced || turn !== player.turn) return;
  if (fresh) port.postMessage({ clear: true });
  port.postMessage({ item: turn, samples });
}

player.stop = async () => {
  player.silenced = player.turn;
  if (node) (await node).port.postMessage({ clear: true });
};
window.minimindPlayer = player;
// Safari lets a page make sound only from within a tap or a key, and silences it again after a telephone call.
for (const gesture of ["click", "keydown"]) {
  document.addEventListener(gesture, () => ready().then(({ context }) => context.resume()).catch(() => {}), true); // take() complains
}
watch("value", () => take(props.value).catch((error) => { clock.textContent = `no sound: ${error.message}`; }));
