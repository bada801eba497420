// Processes that are pinned to a core, watched, and gone when the benchmark is.

import { spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync, readdirSync } from 'node:fs';
import net from 'node:net';
import { createInterface } from 'node:readline';
import { setTimeout as pause } from 'node:timers/promises';

const STOP_WITHIN = 10_000;
const READY_WITHIN = 30_000;

/** The proxy is on the first, everything else on the second. */
export const CORE = { proxy: 0, load: 1 };

const running = new Set();

/** Ends what is left. The last resort: no child outlives this process (see `start`). */
export function killAll() {
  for (const process of running) process.kill();
}

process.on('exit', killAll);
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.on(signal, () => {
    process.exitCode = 130;
    process.exit();
  });
}

/** A TCP port of 127.0.0.1 that nobody listens on now, and that was not given out before. */
const given = new Set();
export async function freePort() {
  for (;;) {
    const port = await new Promise((resolve, reject) => {
      const server = net.createServer().on('error', reject);
      server.listen(0, '127.0.0.1', () => {
        const { port } = server.address();
        server.close(() => resolve(port));
      });
    });
    if (!given.has(port)) {
      given.add(port);
      return port;
    }
  }
}

/** One process with all that it starts. */
export class Started {
  constructor(name, child, log) {
    this.name = name;
    this.child = child;
    this.log = log;
    running.add(this);
    this.ended = new Promise((resolve) => {
      child.once('exit', (code, signal) => resolve({ code, signal }));
      child.once('error', (error) => resolve({ error }));
    }).then((end) => {
      this.end = end;
      running.delete(this);
      return end;
    });
  }

  /** It and its descendants, now. */
  pids() {
    const children = new Map();
    for (const entry of readdirSync('/proc')) {
      if (!/^\d+$/.test(entry)) continue;
      const stat = statOf(entry);
      if (!stat) continue;
      if (!children.has(stat.parent)) children.set(stat.parent, []);
      children.get(stat.parent).push(Number(entry));
    }
    const all = [];
    const open = [this.child.pid];
    while (open.length > 0) {
      const pid = open.pop();
      all.push(pid);
      open.push(...(children.get(pid) ?? []));
    }
    return all;
  }

  kill(signal = 'SIGKILL') {
    if (this.end) return;
    for (const pid of this.pids()) {
      try {
        process.kill(pid, signal);
      } catch {
        // Gone in the meantime.
      }
    }
  }

  async stop() {
    if (this.end) return;
    this.child.kill('SIGTERM');
    const timer = setTimeout(() => this.kill(), STOP_WITHIN);
    await this.ended;
    clearTimeout(timer);
  }

  /** The end of its log, for an error message. */
  tail() {
    const text = this.log ? readFileSync(this.log, 'utf8').trimEnd() : '';
    return text.split('\n').slice(-15).map((line) => `  ${line.slice(0, 400)}`).join('\n');
  }
}

/**
 * Starts a program on one core. Its output goes to the file `log`. Linux ends it when this process
 * dies, however that happens.
 */
export function start(name, core, command, args, { log, stdin = 'ignore', stdout, env = {} } = {}) {
  const file = log && openSync(log, 'a');
  const child = spawn('setpriv', ['--pdeathsig', 'TERM', 'taskset', '-c', String(core), command, ...args], {
    stdio: [stdin, stdout ?? file ?? 'ignore', file ?? 'inherit'],
    env: { ...process.env, ...env },
  });
  if (file) closeSync(file);
  return new Started(name, child, log);
}

/** Runs a program on the load's core to its end, and answers what it printed. */
export async function run(name, command, args, { within, env } = {}) {
  const child = start(name, CORE.load, command, args, { stdout: 'pipe', env });
  const chunks = [];
  child.child.stdout.on('data', (chunk) => chunks.push(chunk));
  // The process may end before all that it printed has been read.
  const read = new Promise((resolve) => child.child.stdout.once('close', resolve));
  const timer = setTimeout(() => child.kill(), within);
  const end = await child.ended;
  await read;
  clearTimeout(timer);
  const text = Buffer.concat(chunks).toString();
  if (end.code !== 0) throw new Error(`${name} failed (${JSON.stringify(end)}): ${text.slice(-2000)}`);
  return text;
}

/** Lines of JSON that a process prints, one at a time. */
export function lines(started) {
  const iterator = createInterface({ input: started.child.stdout })[Symbol.asyncIterator]();
  return async (within) => {
    const late = pause(within, 'late', { ref: false });
    const next = await Promise.race([iterator.next(), late]);
    if (next === 'late') throw new Error(`${started.name} says nothing for ${within / 1000} s`);
    if (next.done) throw new Error(`${started.name} ended: ${JSON.stringify(await started.ended)}`);
    return JSON.parse(next.value);
  };
}

/** Waits until `answers` does not throw. */
export async function ready(started, answers) {
  const deadline = Date.now() + READY_WITHIN;
  for (;;) {
    try {
      return await answers();
    } catch (error) {
      if (started.end || Date.now() > deadline) {
        const why = started.end ? `it ended with ${JSON.stringify(started.end)}` : error.message;
        throw new Error(`${started.name} does not get ready: ${why}\n${started.tail()}`);
      }
    }
    await pause(100);
  }
}

function statOf(pid) {
  try {
    // The second field is the program's name in parentheses, which may hold anything.
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
    return { parent: Number(fields[1]), ticks: Number(fields[11]) + Number(fields[12]) };
  } catch {
    return undefined;
  }
}

/** What the kernel counts utime and stime in, per second. */
const TICKS = 100;

/** User and system time of processes with all that they started, in seconds. */
export function cpuSeconds(processes) {
  let ticks = 0;
  for (const started of processes) {
    for (const pid of started.pids()) ticks += statOf(pid)?.ticks ?? 0;
  }
  return ticks / TICKS;
}

/** Resident memory of processes with all that they started, in KiB; shared pages count once. */
export function residentKib(processes) {
  let kib = 0;
  for (const started of processes) {
    for (const pid of started.pids()) {
      const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8');
      kib += Number(/^Pss:\s+(\d+) kB/m.exec(rollup)?.[1] ?? 0);
    }
  }
  return kib;
}
