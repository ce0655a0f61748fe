// The official client against a slow engine with room for two: cancellation, limits, keys, draining.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import OpenAI from "openai";

import { eventually, MODEL, Server } from "./server.mjs";

const SLOW = { "worker.engine": "sim", "worker.sim.step_us": 20_000, "frontend.max_requests": 2 };
const LONG = {
  model: MODEL,
  messages: [{ role: "user", content: "Tell me 6 stories." }],
  max_tokens: 1500,
  ignore_eos: true,
};
const SHORT = { ...LONG, max_tokens: 2 };

let slow;
let client;

before(async () => {
  slow = await Server.start(SLOW);
  client = slow.client();
});

after(() => slow?.stop());

const cancelled = async () => (await slow.metric("cuelight_cancellations_total", 'reason="disconnect"')) ?? 0;

async function checkGone(before, count) {
  await eventually("the cancellation is counted", async () => (await cancelled()) >= before + count);
  await slow.waitUntilIdle();
  assert.equal(await cancelled(), before + count);
}

test("an aborted stream cancels its request", async () => {
  await slow.waitUntilIdle();
  const before = await cancelled();
  const stream = await client.chat.completions.create({ ...LONG, stream: true });
  let seen = 0;
  for await (const _ of stream) {
    if (++seen === 3) break; // the client aborts the request
  }
  stream.controller.abort();
  await checkGone(before, 1);
});

test("an aborted request and one that times out are cancelled", async () => {
  await slow.waitUntilIdle();
  const before = await cancelled();
  const controller = new AbortController();
  const request = client.chat.completions.create(LONG, { signal: controller.signal });
  const rejected = assert.rejects(request, OpenAI.APIUserAbortError);
  await eventually("it runs", async () => (await slow.metric("cuelight_running")) === 1);
  controller.abort();
  await rejected;
  await assert.rejects(client.chat.completions.create(LONG, { timeout: 500 }), OpenAI.APIConnectionTimeoutError);
  await checkGone(before, 2);
});

test("one request too many is refused, and a client that retries gets its answer", async () => {
  await slow.waitUntilIdle();
  const streams = await Promise.all([1, 2].map(() => client.chat.completions.create({ ...LONG, max_tokens: 75, stream: true })));
  const finished = Promise.all(streams.map(async (stream) => {
    for await (const _ of stream);
  }));
  await assert.rejects(client.chat.completions.create(SHORT),
    (error) => error instanceof OpenAI.RateLimitError && Number(error.headers.get("retry-after")) >= 1);
  const late = await slow.client({ maxRetries: 8 }).chat.completions.create(SHORT);
  assert.equal(late.usage.completion_tokens, 2);
  await finished;
});

test("only a known key gets in", async () => {
  const server = await Server.start({ "frontend.api_keys": "env:CUELIGHT_TEST_KEY" }, { CUELIGHT_TEST_KEY: "the key" });
  try {
    await assert.rejects(async () => await server.client().models.list(), OpenAI.AuthenticationError);
    const models = await server.client({ apiKey: "the key" }).models.list();
    assert.equal(models.data[0].id, MODEL);
  } finally {
    await server.stop();
  }
});

test("SIGTERM lets a running stream finish and refuses new requests", async () => {
  const server = await Server.start(SLOW);
  try {
    const stream = await server.client().chat.completions.create({ ...LONG, max_tokens: 75, stream: true });
    const chunks = stream[Symbol.asyncIterator]();
    await chunks.next();
    server.process.kill("SIGTERM");
    await eventually("GET /health says 503", async () => (await fetch(`${server.origin}/health`)).status === 503);
    await assert.rejects(server.client().chat.completions.create(SHORT),
      (error) => error instanceof OpenAI.InternalServerError && error.status === 503);
    let last;
    for (let next = await chunks.next(); !next.done; next = await chunks.next()) last = next.value;
    assert.equal(last.choices[0].finish_reason, "length");
    assert.equal(await server.ended, 0);
  } finally {
    await server.stop();
  }
});
