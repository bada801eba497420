// The four measurements. Each takes what `start` of a row gave.

import { readFileSync, truncateSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { get } from './http.js';
import { programs } from './peers.js';
import { CORE, cpuSeconds, lines, residentKib, run, start } from './processes.js';
import { HOST } from './system.js';

const CLIENTS = 64;
const STREAMS = 4;
const GIB = 2 ** 30;
const FIRST_IDLE = 500;
const TOKENS_LUA = fileURLToPath(new URL('tokens.lua', import.meta.url));
/** A notebook's channel to its kernel, so that messages are looked into. */
const CHANNEL = '/api/kernels/1/channels';

/** Tokens that must be refused, by what is wrong with them. */
function badTokens(token) {
  const [header, payload, signature] = token.split('.');
  const middle = Math.floor(signature.length / 2);
  const other = signature[middle] === 'A' ? 'B' : 'A';
  const none = Buffer.from(JSON.stringify({ alg: 'none', typ: 'at+jwt' })).toString('base64url');
  return {
    'no token': undefined,
    'a wrong signature': [header, payload, signature.slice(0, middle) + other + signature.slice(middle + 1)].join('.'),
    'no signature': `${none}.${payload}.`,
  };
}

/** Throws when a good token is refused, or a row that verifies takes a bad one. */
export async function checkTokens(row, peer, system) {
  const tls = row.tls && HOST;
  const ask = (token) => {
    const headers = { host: HOST, ...(token ? { authorization: `Bearer ${token}` } : {}) };
    return get(peer.port, '/1k', { headers, tls });
  };
  const good = await ask(system.tokens[0]);
  if (good.status !== 200 || good.text.length !== 1024) {
    throw new Error(`a good token is answered with ${good.status} and ${good.text.length} bytes`);
  }
  if (!row.verifies) return;
  for (const [what, token] of Object.entries(badTokens(system.tokens[0]))) {
    const { status } = await ask(token);
    if (status !== 401) throw new Error(`${what} is answered with ${status} instead of 401`);
  }
}

/** Logs would fill the disk. Each was written while it counted. */
function forgetLogs(peer) {
  for (const { log } of peer.processes) if (log) truncateSync(log);
}

/** Loads a row with requests and answers how many were answered. `many`: another token each time. */
async function wrk(row, peer, system, { seconds, many }) {
  const url = `${row.tls ? 'https' : 'http'}://127.0.0.1:${peer.port}/1k`;
  const args = ['-t', '1', '-c', String(CLIENTS), '-d', `${seconds}s`];
  if (many) args.push('-s', TOKENS_LUA);
  else args.push('-H', `Host: ${HOST}`, '-H', `Authorization: Bearer ${system.tokens[0]}`);
  const env = { TOKENS: path.join(system.folder, 'tokens'), HOST_FIELD: HOST };
  const text = await run('wrk', programs.wrk, [...args, url], { within: (seconds + 20) * 1000, env });
  forgetLogs(peer);
  const done = Number(/(\d+) requests in/.exec(text)?.[1]);
  if (!(done > 0)) throw new Error(`wrk says no figure:\n${text}`);
  const failed = /Non-2xx or 3xx responses: (\d+)/.exec(text)?.[1];
  const broken = /Socket errors: connect (\d+), read (\d+), write (\d+)/.exec(text)?.slice(1).map(Number);
  if (failed || broken?.some((count) => count > 0)) throw new Error(`requests failed:\n${text}`);
  return done;
}

/** CPU microseconds per request. */
export async function requests(row, peer, system, options) {
  const before = cpuSeconds(peer.processes);
  const done = await wrk(row, peer, system, options);
  return ((cpuSeconds(peer.processes) - before) * 1e6) / done;
}

/** System calls per request, as strace counts them: `{ total, names }`. It slows everything down. */
export async function systemCalls(row, peer, system) {
  const file = path.join(system.folder, `strace-${peer.port}`);
  const pids = peer.processes.flatMap((one) => one.pids()).flatMap((pid) => ['-p', String(pid)]);
  const strace = start('strace', CORE.load, programs.strace, ['-qqq', '-f', '-c', '-o', file, ...pids]);
  await pause(500);
  let done;
  try {
    done = await wrk(row, peer, system, { seconds: 4, many: false });
  } finally {
    strace.child.kill('SIGINT');
    await strace.ended;
  }
  const rows = readFileSync(file, 'utf8').split('\n').map((line) => line.trim().split(/\s+/));
  const calls = rows.filter(([share]) => /^\d/.test(share)).map((words) => [words.at(-1), Number(words[3]) / done]);
  const each = calls.filter(([name]) => name !== 'total');
  const names = each.filter(([, count]) => count >= 0.05).map(([name, count]) => `${name} ${count.toFixed(1)}`);
  return { total: each.reduce((sum, [, count]) => sum + count, 0), names: names.join(', ') };
}

function load(row, peer, system, order, args, stdin = 'ignore') {
  const target = ['--to', `127.0.0.1:${peer.port}`, '--host', HOST];
  target.push('--header', `Authorization: Bearer ${system.tokens[0]}`);
  if (row.tls) target.push('--ca', path.join(system.folder, 'tls.crt'));
  return start(`dormouse-load ${order}`, CORE.load, system.load, [order, ...target, ...args], { stdin, stdout: 'pipe' });
}

async function finish(client) {
  const end = await client.ended;
  if (end.code !== 0) throw new Error(`${client.name} failed: ${JSON.stringify(end)}`);
}

/**
 * KiB of memory per WebSocket that is open and silent. Some are opened first, so that what a process
 * got ready at its start, or has left over from it, is not taken for theirs. `settle`: milliseconds in
 * which allocators may give back what the handshakes used.
 */
export async function idleWebSockets(row, peer, system, { connections, settle }) {
  const clients = [];
  const open = async (count) => {
    const args = ['--path', CHANNEL, '--connections', String(count)];
    const client = load(row, peer, system, 'idle', args, 'pipe');
    const next = lines(client);
    clients.push({ client, next });
    await next(120_000);
    await pause(settle);
    return residentKib(peer.processes);
  };
  try {
    const before = await open(FIRST_IDLE);
    const kib = ((await open(connections)) - before) / connections;
    for (const { client, next } of clients) {
      client.child.stdin.end();
      await next(60_000);
      await finish(client);
    }
    return kib;
  } finally {
    for (const { client } of clients) client.kill();
  }
}

/** CPU microseconds per message that is sent and comes back. */
export async function echoes(row, peer, system, { seconds }) {
  const args = ['--path', CHANNEL, '--connections', String(CLIENTS), '--seconds', String(seconds)];
  const client = load(row, peer, system, 'echo', args);
  try {
    const next = lines(client);
    await next(30_000);
    const before = cpuSeconds(peer.processes);
    const { messages } = await next((seconds + 20) * 1000);
    const used = cpuSeconds(peer.processes) - before;
    await finish(client);
    return (used * 1e6) / messages;
  } finally {
    client.kill();
  }
}

/** CPU seconds per GiB of long answers. */
export async function streams(row, peer, system, { seconds }) {
  const client = load(row, peer, system, 'stream', ['--connections', String(STREAMS), '--seconds', String(seconds)]);
  try {
    const next = lines(client);
    const before = cpuSeconds(peer.processes);
    const { bytes } = await next((seconds + 60) * 1000);
    const used = cpuSeconds(peer.processes) - before;
    await finish(client);
    return (used * GIB) / bytes;
  } finally {
    client.kill();
  }
}
