// The official client against the shipped model: answers, streams, sampling, errors.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import OpenAI from "openai";

import { MODEL, Server } from "./server.mjs";

const FRANCE = "What is the capital of France?";
const PARIS = "The capital of France is Paris.";

let server;
let client;

before(async () => {
  server = await Server.start();
  client = server.client();
});

after(() => server?.stop());

function ask(content, options = {}) {
  return client.chat.completions.create({ model: MODEL, messages: [{ role: "user", content }], ...options });
}

async function textOf(answer) {
  return (await answer).choices[0].message.content;
}

async function gather(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

function joined(chunks) {
  return chunks.flatMap((chunk) => chunk.choices.map((choice) => choice.delta.content ?? "")).join("");
}

test("the capital of France is Paris", async () => {
  const answer = await ask(FRANCE);
  assert.equal(answer.choices[0].message.content, PARIS);
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.equal(answer.usage.prompt_tokens, 15);
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
});

test("a stream has the same text, and usage when asked for", async () => {
  const chunks = await gather(await ask(FRANCE, { stream: true, stream_options: { include_usage: true } }));
  assert.equal(joined(chunks), PARIS);
  assert.equal(chunks[0].choices[0].delta.role, "assistant");
  const last = chunks.at(-1);
  assert.deepEqual(last.choices, []);
  assert.equal(last.usage.prompt_tokens, 15);
  assert.ok(chunks.slice(0, -1).every((chunk) => chunk.usage == null));
  const bare = await gather(await ask(FRANCE, { stream: true }));
  assert.ok(bare.every((chunk) => chunk.usage == null && chunk.choices.length === 1));
});

test("the stream helper gathers the final message", async () => {
  const stream = client.chat.completions.stream({ model: MODEL, messages: [{ role: "user", content: FRANCE }] });
  assert.equal((await stream.finalMessage()).content, PARIS);
});

test("many streams at once are kept apart", async () => {
  const questions = { [FRANCE]: PARIS, "What is 64 plus 72?": "64 + 72 = 136.", "Spell the word summer.": "s-u-m-m-e-r" };
  const asked = Array.from({ length: 30 }, (_, i) => Object.keys(questions)[i % 3]);
  const texts = await Promise.all(asked.map(async (text) => joined(await gather(await ask(text, { stream: true })))));
  assert.deepEqual(texts, asked.map((text) => questions[text]));
});

test("n choices come in order, and a seed repeats them", async () => {
  const options = { n: 3, temperature: 1, seed: 11, max_tokens: 30 };
  const texts = async () => {
    const answer = await ask("Tell me a story.", options);
    assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1, 2]);
    return answer.choices.map((choice) => choice.message.content);
  };
  const first = await texts();
  assert.equal(new Set(first).size, 3);
  assert.deepEqual(await texts(), first);
});

test("limits and stop strings end the text", async () => {
  for (const limit of [{ max_tokens: 3 }, { max_completion_tokens: 3 }]) {
    const answer = await ask(FRANCE, limit);
    assert.equal(answer.choices[0].finish_reason, "length");
    assert.equal(answer.usage.completion_tokens, 3);
  }
  assert.equal(await textOf(ask(FRANCE, { stop: "Paris" })), "The capital of France is ");
  assert.equal(await textOf(ask(FRANCE, { stop: ["l of Fr", "x"] })), "The capita");
});

test("log probabilities are those of the text", async () => {
  const answer = await ask(FRANCE, { logprobs: true, top_logprobs: 4 });
  const rows = answer.choices[0].logprobs.content.filter((row) => row.token !== "<|im_end|>");
  assert.equal(rows.map((row) => row.token).join(""), PARIS);
  assert.ok(rows.every((row) => row.top_logprobs.length === 4 && row.top_logprobs[0].logprob === row.logprob));
});

test("completions take strings, lists and token ids", async () => {
  const prompt = `<|im_start|>user\n${FRANCE}<|im_end|>\n<|im_start|>assistant\n`;
  const one = await client.completions.create({ model: MODEL, prompt, max_tokens: 20 });
  assert.equal(one.choices[0].text, PARIS);
  const two = await client.completions.create({ model: MODEL, prompt: [prompt, prompt], max_tokens: 20 });
  assert.deepEqual(two.choices.map((choice) => choice.text), [PARIS, PARIS]);
  const stream = await client.completions.create({ model: MODEL, prompt, max_tokens: 20, stream: true });
  assert.equal((await gather(stream)).map((chunk) => chunk.choices[0]?.text ?? "").join(""), PARIS);
});

test("models are listed and found", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.ok(ids.includes(MODEL));
  assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
});

test("errors are typed and name the parameter", async () => {
  await assert.rejects(client.models.retrieve("nothing"), OpenAI.NotFoundError);
  await assert.rejects(client.chat.completions.create({ model: "nothing", messages: [{ role: "user", content: "x" }] }),
    (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found");
  await assert.rejects(ask(FRANCE, { temperature: 9 }),
    (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature");
  for (const stream of [false, true]) {
    await assert.rejects(ask("fox ".repeat(5000), { stream }),
      (error) => error instanceof OpenAI.BadRequestError && error.code === "context_length_exceeded");
  }
});

test("unicode is passed through", async () => {
  const answer = await ask("Grüße, мир, 世界 🌍🏽!", { max_tokens: 8 });
  assert.ok(["stop", "length"].includes(answer.choices[0].finish_reason));
});
