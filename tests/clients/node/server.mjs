// Runs `cuelight serve` for a test, on a loopback port of its own.

import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { createServer } from "node:net";
import { fileURLToPath } from "node:url";

import OpenAI from "openai";

const REPOSITORY = fileURLToPath(new URL("../../../", import.meta.url));
const BINARY = process.env.CUELIGHT_BIN ?? `${REPOSITORY}target/release/cuelight`;
const READY_WITHIN_MS = 30_000;
const END_WITHIN_MS = 20_000;
const SETTLE_WITHIN_MS = 10_000;

export const MODEL = "cuelight-tiny";

function freePort() {
  return new Promise((resolve, reject) => {
    const probe = createServer();
    probe.once("error", reject);
    probe.listen(0, "127.0.0.1", () => {
      const { port } = probe.address();
      probe.close(() => resolve(port));
    });
  });
}

// Polls until `condition()` is true; anything else it returns may say why not.
export async function eventually(what, condition, withinMs = SETTLE_WITHIN_MS) {
  const deadline = Date.now() + withinMs;
  for (;;) {
    const value = await condition();
    if (value === true) return;
    if (Date.now() > deadline) throw new Error(`not within ${withinMs} ms: ${what} (it was ${JSON.stringify(value)})`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

export class Server {
  // `sets` become `--set key=value`.
  static async start(sets = {}, env = {}) {
    if (!existsSync(BINARY)) throw new Error(`${BINARY} is missing: build it first, with cargo build --release`);
    const server = new Server();
    const port = await freePort();
    server.origin = `http://127.0.0.1:${port}`;
    const all = { "frontend.http": `127.0.0.1:${port}`, ...sets };
    const args = Object.entries(all).flatMap(([key, value]) => ["--set", `${key}=${value}`]);
    server.log = "";
    server.process = spawn(BINARY, ["serve", ...args], {
      cwd: REPOSITORY,
      env: { ...process.env, ...env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    server.ended = new Promise((resolve) => server.process.once("close", (code, signal) => resolve(code ?? signal)));
    for (const stream of [server.process.stdout, server.process.stderr]) {
      stream.on("data", (text) => (server.log += text));
    }
    try {
      await eventually("GET /health says 200", () => server.isReady(), READY_WITHIN_MS);
    } catch (error) {
      server.process.kill("SIGKILL");
      throw new Error(`${error.message}\n${server.log}`);
    }
    return server;
  }

  async isReady() {
    if (this.process.exitCode !== null) throw new Error(`the server ended with ${this.process.exitCode}`);
    try {
      return (await fetch(`${this.origin}/health`)).status === 200;
    } catch (error) {
      return String(error.cause ?? error);
    }
  }

  // The official client, without retries unless the test is about them.
  client(options = {}) {
    return new OpenAI({ baseURL: `${this.origin}/v1`, apiKey: "none", maxRetries: 0, timeout: 60_000, ...options });
  }

  // The sum of a metric's series whose labels contain `label`; undefined if there is none.
  async metric(name, label = "") {
    const text = await (await fetch(`${this.origin}/metrics`)).text();
    const values = text
      .split("\n")
      .map((line) => /^([\w:]+)(?:\{(.*)\})? (\S+)/.exec(line))
      .filter((series) => series?.[1] === name && (series[2] ?? "").includes(label))
      .map((series) => Number(series[3]));
    return values.length ? values.reduce((sum, value) => sum + value, 0) : undefined;
  }

  // No request, no leg and no used KV block is left behind.
  async waitUntilIdle() {
    const names = ["cuelight_requests_active", "cuelight_running", "cuelight_waiting", "cuelight_kv_blocks_used"];
    await eventually("nothing runs and no KV block is held", async () => {
      const left = {};
      for (const name of names) {
        const value = await this.metric(name);
        if (value !== 0) left[name] = value ?? "absent";
      }
      return Object.keys(left).length === 0 || left;
    });
  }

  // Ends the server in good order and looks through its log.
  async stop() {
    this.process.kill("SIGTERM");
    const late = setTimeout(() => this.process.kill("SIGKILL"), END_WITHIN_MS);
    const status = await this.ended;
    clearTimeout(late);
    if (status !== 0) throw new Error(`the server ended with ${status}:\n${this.log}`);
    const bad = this.log.split("\n").filter((line) => /\bERROR\b|panicked at/.test(line));
    if (bad.length) throw new Error(`the server complained:\n${bad.join("\n")}`);
  }
}
