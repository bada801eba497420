// What a request, a WebSocket and a stream cost in `dormouse proxy`, beside other proxies.

import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { checkTokens, echoes, idleWebSockets, requests, streams, systemCalls } from './edge/measure.js';
import { ours } from './edge/ours.js';
import { peers, programs, versions } from './edge/peers.js';
import { killAll } from './edge/processes.js';
import { plot, ratios, spread, table } from './edge/report.js';
import { HOST, startSystem } from './edge/system.js';
import { read } from './options.js';

const here = fileURLToPath(new URL('.', import.meta.url));
const target = process.env.CARGO_TARGET_DIR ?? path.join(here, '..', 'target');
const usage = `What a request, a WebSocket and a stream cost in \`dormouse proxy\`, beside other proxies.

usage: node bench/edge.js [--quick] [--only ID,ID...] [--tables requests,streams] [--rounds N]
                          [--seconds S] [--binary FILE] [--list] [--hold ID] [--tokens N]

  node bench/edge.js --list                            rows by name
  node bench/edge.js --only ours,haproxy --rounds 3    some of them; nginx is always there
  node bench/edge.js --hold ours-general               start one row, say how to load it, and wait`;
const options = read(usage, {
  binary: { type: 'string', default: path.join(target, 'release', 'dormouse') },
  load: { type: 'string', default: path.join(target, 'release', 'dormouse-load') },
  quick: { type: 'boolean', default: false },
  only: { type: 'string' },
  tables: { type: 'string', default: 'requests,streams' },
  rounds: { type: 'string' },
  seconds: { type: 'string' },
  list: { type: 'boolean', default: false },
  hold: { type: 'string' },
  tokens: { type: 'string' },
});

const BASES = { plain: 'nginx', tls: 'nginx-tls' };
const MANY_TOKENS = 1000;
const rows = [...ours, ...peers];
const say = (text) => console.error(`bench: ${text}`);

function number(name, quick, full) {
  const text = options[name] ?? String(options.quick ? quick : full);
  const value = Number(text);
  if (value > 0) return value;
  throw new Error(`--${name} ${text} is no number above 0`);
}

/** The rows to measure: those asked for whose programs are there, nginx always among them. */
function chosen() {
  const asked = options.only?.split(',');
  const unknown = asked?.find((id) => !rows.some((row) => row.id === id));
  if (unknown) throw new Error(`--only: there is no row ${unknown}; see --list`);
  const bases = asked ? [BASES.plain] : [];
  if (asked?.some((id) => rows.find((row) => row.id === id).tls)) bases.push(BASES.tls);
  return rows.filter(({ id, title, needs }) => {
    if (asked && !asked.includes(id) && !bases.includes(id)) return false;
    const lacking = needs.filter((program) => !programs[program]);
    if (lacking.length === 0) return true;
    say(`left out: ${title}: ${lacking.join(', ')} is not installed; scripts/setup bench installs it`);
    return false;
  });
}

/** Runs a measurement. A peer that fails is left out from then on; nginx and ours must not fail. */
async function attempt(row, left, doing) {
  if (left.has(row.id)) return undefined;
  try {
    return await doing();
  } catch (error) {
    if (row.id === BASES.plain || ours.some(({ id }) => id === row.id)) {
      throw new Error(`${row.title}: ${error.message}`, { cause: error });
    }
    say(`left out from here: ${row.title}: ${error.message}`);
    left.set(row.id, error.message.split('\n')[0]);
    return undefined;
  }
}

/** Another one first in each round. */
function rotated(list, round) {
  const first = round % list.length;
  return [...list.slice(first), ...list.slice(0, first)];
}

function note(figures, id, kind, value) {
  if (value === undefined) return;
  figures[id] ??= {};
  (figures[id][kind] ??= []).push(value);
}

async function measureRequests(system, picked, left, figures) {
  const [rounds, seconds] = [number('rounds', 3, 7), number('seconds', 1, 5)];
  const running = new Map();
  const mine = picked.filter((row) => row.requests !== false);
  try {
    for (const row of mine) {
      await attempt(row, left, async () => {
        say(`starting ${row.title}`);
        const peer = await row.start(system);
        running.set(row.id, peer);
        await checkTokens(row, peer, system);
        await requests(row, peer, system, { seconds: 1, many: false });
        if (row.many) await requests(row, peer, system, { seconds: 1, many: true });
      });
    }
    for (let round = 0; round < rounds; round += 1) {
      for (const row of rotated(mine, round)) {
        const measure = (many) =>
          attempt(row, left, () => requests(row, running.get(row.id), system, { seconds, many }));
        note(figures, row.id, 'request', await measure(false));
        if (row.many) note(figures, row.id, 'many', await measure(true));
      }
      say(`requests: round ${round + 1} of ${rounds}`);
    }
    // At the end: what was traced is not what it was before.
    for (const row of programs.strace ? mine.filter(({ calls }) => calls) : []) {
      note(figures, row.id, 'calls', await attempt(row, left, () => systemCalls(row, running.get(row.id), system)));
    }
  } finally {
    await Promise.all([...running.values()].map((peer) => peer.stop()));
  }
}

async function measureStreams(system, picked, left, figures) {
  const [rounds, seconds] = [number('rounds', 2, 5), number('seconds', 1, 4)];
  const mine = picked.filter((row) => row.streams);
  for (let round = 0; round < rounds; round += 1) {
    for (const row of rotated(mine, round)) {
      await attempt(row, left, async () => {
        // Anew each time: memory that an earlier round left would hide what this one takes.
        const peer = await row.start(system);
        try {
          const many = options.quick ? { connections: 1000, settle: 1500 } : { connections: 2000, settle: 3000 };
          note(figures, row.id, 'idle', await idleWebSockets(row, peer, system, many));
          note(figures, row.id, 'echo', await echoes(row, peer, system, { seconds }));
          note(figures, row.id, 'stream', await streams(row, peer, system, { seconds }));
        } finally {
          await peer.stop();
        }
      });
    }
    say(`streams and WebSockets: round ${round + 1} of ${rounds}`);
  }
}

const baseOf = (row) => (row.tls ? BASES.tls : BASES.plain);

function requestTable(measured, figures) {
  const head = ['proxy', 'CPU us per request', 'to nginx', '1,000 tokens: CPU us', 'to nginx, one token'];
  const lines = measured.filter(({ id }) => figures[id]?.request).map((row) => {
    const base = figures[baseOf(row)]?.request;
    const { request, many } = figures[row.id];
    return [row.title, spread(request), spread(ratios(request, base)), spread(many), spread(ratios(many, base))];
  });
  return table([head, ...lines]);
}

function streamTable(measured, figures) {
  const head = ['proxy', 'CPU s per GiB', 'to nginx', 'KiB per idle WebSocket', 'CPU us per message', 'to nginx'];
  const lines = measured.filter(({ id }) => figures[id]?.stream).map((row) => {
    const base = figures[baseOf(row)] ?? {};
    const { stream, idle, echo } = figures[row.id];
    const [a, b] = [ratios(stream, base.stream), ratios(echo, base.echo)];
    return [row.title, spread(stream), spread(a), spread(idle), spread(echo), spread(b)];
  });
  return table([head, ...lines]);
}

function panels(measured, figures) {
  const bars = (kind, relative) =>
    measured.flatMap((row) => {
      const own = figures[row.id]?.[kind];
      if (!own) return [];
      const values = relative ? ratios(own, figures[baseOf(row)]?.[relative]) : own;
      return values.length > 0 ? [{ label: row.title, values, ours: row.id.startsWith('ours') }] : [];
    });
  return [
    { title: 'CPU per request, to nginx without auth (less is better)', bars: bars('request', 'request') },
    { title: 'The same with 1,000 tokens', bars: bars('many', 'request') },
    { title: 'CPU per GiB streamed, to nginx', bars: bars('stream', 'stream') },
    { title: 'CPU per echoed WebSocket message, to nginx', bars: bars('echo', 'echo') },
    { title: 'KiB of memory per idle WebSocket', bars: bars('idle') },
  ];
}

function machine() {
  const kernel = `${os.type()} ${os.release()}`;
  const memory = `${Math.round(os.totalmem() / 2 ** 30)} GiB`;
  const peers = Object.entries(versions()).map(([name, version]) => `${name} ${version}`);
  return [
    `${os.cpus().length} cores of ${os.cpus()[0].model}, ${memory}, ${kernel}.`,
    `Load when it began: ${os.loadavg()[0].toFixed(1)}.`,
    `${peers.join(', ')}.`,
  ].join(' ');
}

function report(measured, left, figures, about) {
  const parts = ['# The edge', '', about, ''];
  parts.push(
    'One worker each, pinned to core 0; load and upstream on core 1. 64 connections, a 1 KiB answer, RS256 tokens.',
    'CPU is the time of all processes that a proxy needs. Median (least to most) of the rounds; ratios within a round.',
    'Every row that verifies was seen to refuse no token, a wrong signature and an unsigned token.',
    '',
  );
  const some = (kind) => measured.some(({ id }) => figures[id]?.[kind]);
  if (some('request')) parts.push(requestTable(measured, figures), '');
  if (some('stream')) parts.push(streamTable(measured, figures), '');
  const traced = measured.filter(({ id }) => figures[id]?.calls);
  if (traced.length > 0) {
    const lines = traced.map(({ id, title }) => {
      const [{ total, names }] = figures[id].calls;
      return [title, total.toFixed(1), names];
    });
    parts.push(table([['proxy', 'system calls per request', 'which'], ...lines]), '');
  }
  for (const [id, why] of left) parts.push(`Left out: ${rows.find((row) => row.id === id).title}: ${why}`, '');
  return parts.join('\n');
}

async function hold(system, row) {
  const peer = await row.start(system);
  const file = path.join(system.folder, 'token');
  writeFileSync(file, system.tokens[0]);
  const scheme = row.tls ? 'https' : 'http';
  console.log(`${row.title}: pid ${peer.processes.map(({ child }) => child.pid).join(' ')}, ${scheme}://127.0.0.1:${peer.port}`);
  console.log(`wrk -t1 -c64 -d5s -H 'Host: ${HOST}' -H "Authorization: Bearer $(cat ${file})" ${scheme}://127.0.0.1:${peer.port}/1k`);
  console.log('Ctrl-C ends it.');
  await Promise.race([...peer.processes.map(({ ended }) => ended), new Promise(() => {})]);
}

async function main() {
  if (options.list) {
    for (const { id, title } of rows) console.log(`${id.padEnd(14)} ${title}`);
    return;
  }
  for (const file of [options.binary, options.load]) {
    if (!existsSync(file)) throw new Error(`${file} is not there; run \`make bench\`, which builds it`);
  }
  for (const program of ['nginx', 'wrk']) {
    if (!programs[program]) throw new Error(`${program} is not installed; run scripts/setup bench`);
  }
  if (os.cpus().length < 2) throw new Error('two cores are needed: one for the proxy and one for the load');
  const picked = chosen();
  const about = machine();
  const folder = mkdtempSync(path.join(os.tmpdir(), 'dormouse-bench-'));
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
  say('starting the authserver and the cluster');
  const [binary, load] = [options.binary, options.load].map((file) => path.resolve(file));
  const many = !options.hold && options.tables.includes('requests') && picked.some((row) => row.many);
  const tokens = Number(options.tokens ?? (many ? MANY_TOKENS : 1));
  const system = await startSystem({ folder, binary, load, tokens });
  writeFileSync(path.join(folder, 'tokens'), system.tokens.map((token) => `${token}\n`).join(''));
  if (options.hold) return hold(system, rows.find(({ id }) => id === options.hold));
  const [figures, left] = [{}, new Map()];
  try {
    if (options.tables.includes('requests')) await measureRequests(system, picked, left, figures);
    if (options.tables.includes('streams')) await measureStreams(system, picked, left, figures);
  } finally {
    await system.stop();
  }
  const text = report(picked, left, figures, about);
  console.log(text);
  const stamp = new Date().toISOString().replaceAll(':', '').slice(0, 17);
  const results = path.join(here, 'results');
  mkdirSync(results, { recursive: true });
  const chart = `edge-${stamp}.svg`;
  writeFileSync(path.join(results, `edge-${stamp}.md`), `${text}\n![Bars of the same figures](${chart})\n`);
  writeFileSync(path.join(results, chart), plot(panels(picked, figures)));
  say(`written to ${path.relative(process.cwd(), path.join(results, `edge-${stamp}.md`))}`);
}

main().catch((error) => {
  console.error(`bench: ${error.message}`);
  killAll();
  process.exit(1);
});
