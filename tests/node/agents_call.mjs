// A spoken call with barge-in by OpenAI's Agents SDK, as a program would make it. Run by tests/test_agents_sdk.py.
// Usage: node agents_call.mjs URL KEY SPEECH (a file of 24 kHz pcm16); prints what happened as JSON.
import { readFileSync } from "node:fs";
import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession } from "@openai/agents/realtime";

const [url, apiKey, file] = process.argv.slice(2);
const speech = readFileSync(file);
const silence = Buffer.alloc(48_000);
const PACKET = 1920; // bytes: 40 ms
const seen = { types: [], errors: [], interrupted: 0, audioBytes: 0, statuses: [] };
const waiters = [];

function note(type) {
  seen.types.push(type);
  for (const waiter of waiters.splice(0)) (waiter.type === type ? waiter.resolve() : waiters.push(waiter));
}
const next = (type) => new Promise((resolve) => waiters.push({ type, resolve }));

const transport = new OpenAIRealtimeWebSocket({ useInsecureApiKey: true });
const session = new RealtimeSession(new RealtimeAgent({ name: "MiniMind-O", instructions: "Answer briefly." }),
  { transport, model: "minimind-o", tracingDisabled: true });
transport.on("*", (event) => {
  if (event.type === "response.done") seen.statuses.push([event.response.status, event.response.status_details?.reason ?? null]);
  note(event.type);
});
transport.on("audio", ({ data }) => { seen.audioBytes += data.byteLength; });
session.on("error", ({ error }) => seen.errors.push(JSON.stringify(error)));
session.on("audio_interrupted", () => { seen.interrupted += 1; });

function say(...parts) {
  const sound = Buffer.concat(parts);
  for (let at = 0; at < sound.length; at += PACKET) session.sendAudio(Uint8Array.from(sound.subarray(at, at + PACKET)).buffer);
}

await session.connect({ apiKey, url });
let wanted = next("response.output_audio.delta");
say(silence, speech, silence);
await wanted;
wanted = next("input_audio_buffer.speech_started");
say(speech); // over the model's reply
await wanted;
wanted = next("response.output_audio.delta");
say(silence);
await wanted;
if (seen.statuses.length < 2) await next("response.done");
await new Promise((resolve) => setTimeout(resolve, 500)); // what the SDK asks for after a turn: items, transcripts
seen.history = session.history.map((item) => [item.role, item.status, item.content?.[0]?.type]);
session.close();
console.log(JSON.stringify(seen));
process.exit(0);
