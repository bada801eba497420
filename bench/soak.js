// Many silent WebSockets and a steady mix of requests through `dormouse proxy`, for long: no error,
// and memory and descriptors that stay. One line per minute.

import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { ours } from './edge/ours.js';
import { CORE, cpuSeconds, killAll, lines, residentKib, start } from './edge/processes.js';
import { table } from './edge/report.js';
import { HOST, startSystem } from './edge/system.js';
import { read } from './options.js';

const here = fileURLToPath(new URL('.', import.meta.url));
const target = process.env.CARGO_TARGET_DIR ?? path.join(here, '..', 'target');
const usage = `Many silent WebSockets and a steady mix of requests through \`dormouse proxy\`: no error, and memory and
descriptors that stay. A line per minute.

usage: node bench/soak.js [--minutes M] [--sockets N] [--rate R] [--tls] [--binary FILE]

  node bench/soak.js --minutes 1 --sockets 1000 --tls`;
const options = read(usage, {
  minutes: { type: 'string', default: '10' },
  sockets: { type: 'string', default: '10000' },
  rate: { type: 'string', default: '2000' },
  tls: { type: 'boolean', default: false },
  binary: { type: 'string', default: path.join(target, 'release', 'dormouse') },
  load: { type: 'string', default: path.join(target, 'release', 'dormouse-load') },
});

// The workload's pod has a working directory of its own.
for (const name of ['binary', 'load']) options[name] = path.resolve(options[name]);

/** People who send requests, each on a connection of theirs and with a token of their own. */
const PEOPLE = 64;
const CHANNEL = '/api/kernels/1/channels';
/** What a proxy has open besides two descriptors for each WebSocket. */
const OTHER_FILES = 400;
/** Memory may grow by so much between the second minute and the last. */
const GROWTH_MAX = 0.05;
const say = (text) => console.error(`soak: ${text}`);

function number(name) {
  const value = Number(options[name]);
  if (value > 0) return value;
  throw new Error(`--${name} ${options[name]} is no number above 0`);
}

/** As many WebSockets as were asked for, or as this machine lets one process have. */
function socketsThatFit(asked) {
  const limit = Number(/^Max open files\s+\d+\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1]);
  const fit = Math.floor((limit - OTHER_FILES) / 2);
  if (!(fit < asked)) return asked;
  say(`one process may open ${limit} files here, so there are ${fit} WebSockets instead of ${asked}`);
  return fit;
}

const openFiles = (processes) =>
  processes.flatMap((one) => one.pids()).reduce((sum, pid) => sum + readdirSync(`/proc/${pid}/fd`).length, 0);

function load(system, peer, order, args, stdin = 'ignore') {
  const to = ['--to', `127.0.0.1:${peer.port}`, '--host', HOST];
  if (options.tls) to.push('--ca', path.join(system.folder, 'tls.crt'));
  const log = path.join(system.folder, `load-${order}.log`);
  return start(`dormouse-load ${order}`, CORE.load, system.load, [order, ...to, ...args], { stdin, stdout: 'pipe', log });
}

async function soak(system) {
  const [minutes, rate] = [number('minutes'), number('rate')];
  const sockets = socketsThatFit(number('sockets'));
  const tokens = path.join(system.folder, 'people');
  writeFileSync(tokens, system.tokens.join('\n'));
  const peer = await ours.find(({ id }) => id === (options.tls ? 'ours-tls' : 'ours')).start(system);
  const rows = [['minute', 'requests', 'failed', 'p50 ms', 'p99 ms', 'max ms', 'memory MiB', 'open files', 'CPU s']];
  const trouble = [];
  const bearer = ['--header', `Authorization: Bearer ${system.tokens[0]}`];
  const idle = load(system, peer, 'idle', ['--path', CHANNEL, '--connections', String(sockets), ...bearer], 'pipe');
  try {
    const alive = lines(idle);
    await alive(300_000);
    say(`${sockets} WebSockets are open: ${(residentKib(peer.processes) / 1024).toFixed(1)} MiB`);
    const flow = ['--path', CHANNEL, '--connections', String(PEOPLE), '--rate', String(rate)];
    flow.push('--seconds', String(minutes * 60), '--every', '60', '--tokens', tokens);
    const mixed = load(system, peer, 'mixed', flow);
    const figures = lines(mixed);
    const memory = [];
    const files = [];
    let cpu = cpuSeconds(peer.processes);
    for (let minute = 1; minute <= minutes; minute += 1) {
      const seen = await figures(120_000);
      memory.push(residentKib(peer.processes) / 1024);
      files.push(openFiles(peer.processes));
      const now = cpuSeconds(peer.processes);
      const ms = [seen.p50, seen.p99, seen.max].map((micros) => (micros / 1000).toFixed(2));
      const rest = [memory.at(-1).toFixed(1), String(files.at(-1)), (now - cpu).toFixed(1)];
      rows.push([String(minute), String(seen.requests), String(seen.failed), ...ms, ...rest]);
      say(rows.at(-1).join('  '));
      cpu = now;
      if (seen.failed > 0) trouble.push(`minute ${minute}: ${seen.failed} failed, first: ${seen.error}`);
      if (seen.requests < rate * 60 * 0.98) trouble.push(`minute ${minute}: only ${seen.requests} requests`);
    }
    if ((await mixed.ended).code !== 0) trouble.push(`the requests ended badly: ${mixed.tail()}`);
    idle.child.stdin.end();
    await alive(120_000).catch((error) => trouble.push(`WebSockets: ${error.message} ${idle.tail()}`));
    const [first, last] = [memory[1] ?? memory[0], memory.at(-1)];
    if (last > first * (1 + GROWTH_MAX)) trouble.push(`memory went from ${first.toFixed(1)} to ${last.toFixed(1)} MiB`);
    // A WebSocket of the mix may be open just then.
    if (files.at(-1) > files[0] + PEOPLE * 2) trouble.push(`open files went from ${files[0]} to ${files.at(-1)}`);
  } finally {
    killAll();
    await peer.stop();
  }
  return { rows, trouble, sockets, rate, minutes };
}

async function main() {
  for (const file of [options.binary, options.load]) {
    if (!existsSync(file)) throw new Error(`${file} is not there; run \`make soak\`, which builds it`);
  }
  const folder = mkdtempSync(path.join(os.tmpdir(), 'dormouse-soak-'));
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
  say('starting an authserver, a cluster and a workload');
  const system = await startSystem({ folder, binary: options.binary, load: options.load, tokens: PEOPLE });
  try {
    const { rows, trouble, sockets, rate, minutes } = await soak(system);
    const how = options.tls ? ' over TLS' : '';
    const text = [
      `# ${sockets} silent WebSockets and ${rate} requests per second${how}, for ${minutes} min`,
      '',
      `${os.cpus().length} cores of ${os.cpus()[0].model}; the proxy on one, everything else on another.`,
      'Of a hundred requests 70 are small GETs, 12 uploads of 4 KiB, 10 answers of 64 KiB, 4 HEADs and 4 WebSockets that open,',
      'echo a message and close. Each WebSocket that was silent echoed a message at the end.',
      '',
      table(rows),
      '',
      trouble.length === 0 ? 'No error.' : trouble.map((one) => `- ${one}`).join('\n'),
      '',
    ].join('\n');
    const results = path.join(here, 'results');
    mkdirSync(results, { recursive: true });
    if (minutes >= 10) writeFileSync(path.join(results, options.tls ? 'soak-tls.md' : 'soak.md'), text);
    console.log(text);
    if (trouble.length > 0) process.exitCode = 1;
  } finally {
    await system.stop();
  }
}

main().catch((error) => {
  console.error(`soak: ${error.message}`);
  process.exitCode = 1;
  killAll();
});
