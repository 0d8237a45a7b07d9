// Runs engine/api/static/phone.js in Node: its audio thread with made-up sound, its page with a made-up browser and server.
// Usage: node tests/phone_probe.js; silent when all is well. Run by tests/test_phone.py.
const assert = require("node:assert");
const fs = require("node:fs");
const path = require("node:path");
const vm = require("node:vm");

const SOURCE = fs.readFileSync(path.join(__dirname, "../engine/api/static/phone.js"), "utf8");

const track = { stop() {} };

function audioThread(sampleRate = 24000) {
  const said = [];
  let Processor;
  class AudioWorkletProcessor { constructor() { this.port = { postMessage: (m) => said.push(m) }; } }
  vm.runInNewContext(SOURCE, { AudioWorkletProcessor, Float32Array, Map, sampleRate, registerProcessor: (name, c) => { Processor = c; } });
  const thread = new Processor();
  const turn = (input = []) => {
    const out = new Float32Array(128);
    assert(thread.process([input.length ? [Float32Array.from(input)] : []], [[out]]));
    return [...out];
  };
  return { thread, said, turn };
}

function testAudioThread() {
  const { thread, said, turn } = audioThread();
  assert.deepEqual(turn(), Array(128).fill(0));
  const play = (item, values) => thread.port.onmessage({ data: { item, samples: Float32Array.from(values) } });
  play("a", Array(100).fill(1));
  play("a", Array(100).fill(2));
  play("b", Array(40).fill(3));
  assert.deepEqual(turn(), [...Array(100).fill(1), ...Array(28).fill(2)]);
  assert.deepEqual(said.splice(0), [{ item: "a", count: 128, idle: false }]);
  assert.deepEqual(turn(), [...Array(72).fill(2), ...Array(40).fill(3), ...Array(16).fill(0)]);
  assert.deepEqual(said.splice(0), [{ item: "a", count: 72, idle: true }, { item: "b", count: 40, idle: true }]);
  play("c", Array(1000).fill(4));
  turn();
  thread.port.onmessage({ data: { clear: true } });
  assert.deepEqual(turn(), Array(128).fill(0), "a cleared queue is silent at once");
  said.length = 0;
  for (let i = 0; i < 15; i++) turn(Array(128).fill(i)); // 1920 samples: two packets
  const packets = said.map((m) => m.packet);
  assert.equal(packets.length, 2);
  assert(packets.every((p) => p.length === 960) && packets[0][0] === 0 && packets[1][959] === 14 && packets[0] !== packets[1]);
}

function testResampling() {
  for (const rate of [16000, 44100, 48000]) {
    for (const [hertz, level] of [[1000, 1], [6000, 1], [15000, 0]]) {
      if (hertz > rate / 2) continue;
      const { said, turn } = audioThread(rate);
      const tone = (i, per) => Math.sin(2 * Math.PI * hertz * i / per);
      for (let at = 0; at < rate; at += 128) turn(Array.from({ length: 128 }, (_, i) => tone(at + i, rate)));
      const heard = said.flatMap((m) => [...m.packet]);
      assert(Math.abs(heard.length - 24000) < 1000, `${rate}: one second is ${heard.length} samples`);
      const off = heard.slice(100).map((x, i) => Math.abs(x - level * tone(i + 100, 24000)));
      assert(Math.max(...off) < 0.03, `${hertz} Hz at ${rate}: off by ${Math.max(...off)}`);
    }
  }
}

const allowed = async () => ({ getTracks: () => [track] });

function browser({ secure = true, language = "en-GB", microphone = allowed, firefox = false } = {}) {
  const elements = {}, posted = [], sent = [], sockets = [];
  const make = () => ({ dataset: {}, style: {}, attributes: {}, children: [], textContent: "", checked: true, scrollHeight: 0,
    append(child) { this.children.push(child); }, replaceChildren() { this.children = []; },
    setAttribute(name, value) { this.attributes[name] = value; } });
  const element = (id) => (elements[id] ??= make());
  const port = { postMessage: (m) => posted.push(m) };
  class Socket { constructor(url, protocols) { Object.assign(this, { url, protocols, readyState: 1 }); sockets.push(this); }
    send(text) { sent.push(JSON.parse(text)); } close() { this.readyState = 3; this.onclose(); } }
  Socket.OPEN = 1;
  const contexts = [], locks = [], listeners = {};
  class Context {
    constructor({ sampleRate = 44100 } = {}) {
      Object.assign(this, { sampleRate, state: "running", destination: {}, audioWorklet: { addModule: async () => {} }, resumed: 0 });
      contexts.push(this);
    }
    createMediaStreamSource() {
      if (firefox && this.sampleRate !== 44100) throw Object.assign(new Error("different sample-rate"), { name: "NotSupportedError" });
      this.listens = true;
      return { connect() {} };
    }
    async resume() { this.resumed++; }
    close() { this.state = "closed"; }
  }
  class Lock { constructor() { locks.push(this); } release() { this.released = true; } }
  const wakeLock = { request: async () => new Lock() };
  class Node { constructor() { this.port = port; } connect() {} }
  const video = () => ({ ...make(), play: async () => {}, videoWidth: 1024, videoHeight: 512 });
  const canvas = () => ({ ...make(), getContext: () => ({ drawImage() {} }), toDataURL() { return `data:${this.width}x${this.height}`; } });
  const createElement = (name) => ({ video, canvas }[name] ?? make)();
  const fetch = async () => ({ json: async () => ({ data: [{ id: "ann" }, { id: "bob" }] }) });
  const document = { body: make(), getElementById: element, createElement, visibilityState: "visible",
    addEventListener: (kind, listener) => { listeners[kind] = listener; } };
  const context = { fetch, document, WebSocket: Socket, AudioContext: Context,
    AudioWorkletNode: Node, window: { isSecureContext: secure }, location: { protocol: "http:", host: "here:1" }, Date, atob, btoa,
    navigator: { language, wakeLock, mediaDevices: secure ? { getUserMedia: microphone } : undefined }, setInterval: () => 1, clearInterval() {} };
  vm.runInNewContext(SOURCE, context);
  const tell = (event) => sockets[0].onmessage({ data: JSON.stringify(event) });
  const settle = () => new Promise((resolve) => setTimeout(resolve, 5));
  return { element, posted, sent, sockets, port, tell, settle, contexts, locks, listeners, state: () => context.document.body.dataset.state };
}

async function testCall() {
  const page = browser();
  const { element, posted, sent, port, tell } = page;
  element("call").onclick();
  await page.settle();
  assert.equal(page.sockets[0].url, "ws://here:1/v1/realtime");
  assert.deepEqual([...page.sockets[0].protocols], ["realtime"]);
  tell({ type: "session.created" });
  assert.equal(page.state(), "listening");
  assert.equal(sent.pop().session.audio.input.turn_detection.interrupt_response, true);
  assert(element("call").hidden && !element("hangup").hidden);

  port.onmessage({ data: { packet: new Float32Array(960).fill(0.5) } });
  const heard = Buffer.from(sent.pop().audio, "base64");
  assert.equal(heard.length, 1920);
  assert.equal(heard.readInt16LE(0), 16384);
  assert.equal(element("level").style.transform, `scaleX(${Math.sqrt(0.5)})`);
  element("mute").onclick();
  port.onmessage({ data: { packet: new Float32Array(960).fill(0.5) } });
  assert(Buffer.from(sent.pop().audio, "base64").every((byte) => byte === 0), "muted: silence, not nothing");
  element("mute").onclick();

  const reply = (id, transcript) => {
    tell({ type: "response.created" });
    tell({ type: "response.output_item.added", item: { id } });
    tell({ type: "response.output_audio_transcript.delta", item_id: id, delta: transcript });
    tell({ type: "response.output_audio.delta", item_id: id, delta: Buffer.from(new Int16Array([16384, -16384]).buffer).toString("base64") });
  };
  reply("one", "It is ");
  tell({ type: "response.output_audio_transcript.delta", item_id: "one", delta: "blue." });
  assert.equal(page.state(), "speaking");
  assert.deepEqual([...posted.at(-1).samples], [0.5, -0.5]);
  assert.deepEqual(element("captions").children.map((line) => line.textContent), ["It is blue."]);
  port.onmessage({ data: { item: "one", count: 12000, idle: false } });
  tell({ type: "response.done", response: { status: "completed" } });
  assert.equal(page.state(), "speaking", "it is still being played");
  tell({ type: "input_audio_buffer.speech_started" });
  assert.deepEqual({ ...posted.at(-1) }, { clear: true });
  assert.deepEqual(sent.pop(), { type: "conversation.item.truncate", item_id: "one", content_index: 0, audio_end_ms: 500 });
  assert.equal(page.state(), "listening");
  tell({ type: "input_audio_buffer.committed", item_id: "q" });
  reply("two", "Green.");
  tell({ type: "conversation.item.input_audio_transcription.completed", item_id: "q", transcript: "And grass?" });
  assert.deepEqual(element("captions").children.map((line) => line.textContent), ["It is blue.", "And grass?", "Green."]);
  tell({ type: "response.done", response: { status: "completed" } });
  port.onmessage({ data: { item: "two", count: 2, idle: true } });
  assert.equal(page.state(), "listening", "all is played");

  element("show").onclick();
  await page.settle();
  const shown = sent.pop().item.content[0];
  assert.deepEqual(shown, { type: "input_image", image_url: "data:512x256" });
  assert.equal(element("captions").children.at(-1).src, "data:512x256");

  assert.deepEqual(element("voice").children.map((option) => option.value), ["ann", "bob"]);
  element("voice").value = "bob";
  element("voice").onchange();
  assert.equal(sent.pop().session.audio.output.voice, "bob");
  element("interrupt").checked = false;
  element("interrupt").onchange();
  assert.equal(sent.pop().session.audio.input.turn_detection.interrupt_response, false);
  reply("three", "x");
  const before = posted.length;
  tell({ type: "input_audio_buffer.speech_started" });
  assert.equal(posted.length, before, "no barge-in");
  tell({ type: "response.done", response: { status: "failed", status_details: { error: { message: "cannot hear" } } } });
  assert.equal(element("message").textContent, "cannot hear");
  element("hangup").onclick();
  assert.equal(page.state(), "idle");
  assert.equal(page.sockets[0].readyState, 3);
  port.onmessage({ data: { packet: new Float32Array(960) } }); // the audio thread's last word comes too late
  assert(!element("call").hidden && element("mute").hidden);
}

async function testMessages() {
  const insecure = browser({ secure: false });
  insecure.element("call").onclick();
  await insecure.settle();
  assert.match(insecure.element("message").textContent, /https[^]*--ssl-certfile/);
  for (const [name, words] of [["NotAllowedError", /denied\. Allow it/], ["NotFoundError", /no usable microphone/]]) {
    const page = browser({ microphone: async () => { throw Object.assign(new Error(), { name }); } });
    page.element("call").onclick();
    await page.settle();
    assert.match(page.element("message").textContent, words);
    assert.equal(page.state(), "idle");
  }
  const chinese = browser({ language: "zh-CN", secure: false });
  chinese.element("call").onclick();
  assert.equal(chinese.element("call").textContent, "拨打");
  assert.match(chinese.element("message").textContent, /麦克风/);
  const left = browser();
  left.element("call").onclick();
  await left.settle();
  left.sockets[0].close();
  assert.match(left.element("message").textContent, /server ended the call/);
  assert.equal(left.state(), "idle");
}

async function testPhones() {
  const page = browser({ firefox: true });
  page.element("call").onclick();
  await page.settle();
  const listening = page.contexts.map((c) => [c.sampleRate, !!c.listens]);
  assert.deepEqual(listening, [[24000, false], [44100, true]], "Firefox hears at the device's rate");
  page.tell({ type: "session.created" });
  assert.equal(page.locks.length, 1, "the screen stays on");
  page.contexts[1].state = "interrupted";
  page.contexts[1].onstatechange();
  assert.equal(page.contexts[1].resumed, 2);
  page.listeners.visibilitychange();
  await page.settle();
  assert.equal(page.locks.length, 2);
  assert.equal(page.contexts[1].resumed, 3);
  track.onended();
  assert.match(page.element("message").textContent, /no usable microphone/);
  assert(page.state() === "idle" && page.locks[1].released && page.contexts.every((c) => c.state === "closed"));
}

testAudioThread();
testResampling();
testCall().then(testMessages).then(testPhones).catch((error) => { console.error(error); process.exit(1); });
