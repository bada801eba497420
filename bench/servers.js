// What is measured, each pinned to one core.

import { spawn, spawnSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { request, tokenRequest } from './load.js';

const START_WITHIN = 20_000;
const client = { id: 'bench', secret: randomBytes(24).toString('hex') };

/**
 * RSA signatures per second, by `openssl speed`: of time as it passes, or else of the processor's time.
 */
export function opensslSignatures(core, seconds, elapsed) {
  const args = ['-c', String(core), 'openssl', 'speed', ...(elapsed ? ['-elapsed'] : []), '-seconds', String(seconds)];
  const { status, stdout, stderr } = spawnSync('taskset', [...args, 'rsa2048'], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`openssl speed: ${stderr}`);
  const lines = stdout.split('\n').map((line) => line.trim().split(/\s+/));
  const column = lines.find((words) => words.includes('sign/s'))?.indexOf('sign/s');
  // The figures of a line stand behind `rsa 2048 bits`.
  const figures = lines.find((words) => words[0] === 'rsa' && words.includes('bits'));
  const value = Number(figures?.[figures.indexOf('bits') + 1 + column]);
  if (!(value > 0)) throw new Error(`no sign/s in what openssl speed says:\n${stdout}`);
  return value;
}

function freePort() {
  return new Promise((resolve, reject) => {
    const server = net.createServer().on('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

const TICKS = Number(spawnSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }).stdout) || 100;

/** Seconds of processor time that a process has used, in its own code and in the kernel's for it. */
export function processorTime(pid) {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  // The second field is the program's name, and may have anything in it.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / TICKS;
}

function pinned(core, command, args, stdio, env = {}) {
  // It does not outlive us, whatever ends us.
  const pinning = ['--pdeathsig', 'TERM', 'taskset', '-c', String(core)];
  const child = spawn('setpriv', [...pinning, command, ...args], { stdio, env: { ...process.env, ...env } });
  const ended = new Promise((resolve) => {
    child.once('exit', resolve);
    child.once('error', resolve);
  });
  const stop = async () => {
    child.kill('SIGTERM');
    const timer = setTimeout(() => child.kill('SIGKILL'), 10_000);
    await ended;
    clearTimeout(timer);
  };
  return { child, ended, stop };
}

/** `dormouse authserver` with a person's refresh tokens: `{ name, endpoint, tokens, scopes, stop }`. */
export async function dormouse(core, binary, folder, families) {
  const port = await freePort();
  let admin = await freePort();
  while (admin === port) admin = await freePort();
  const file = (name) => path.join(folder, name);
  const issuer = 'https://auth.bench.example';
  const redirectUri = 'http://127.0.0.1/callback';
  writeFileSync(file('gate-secret'), randomBytes(24).toString('hex'), { mode: 0o600 });
  writeFileSync(file('client-secret'), client.secret, { mode: 0o600 });
  const settings = `
listen = "127.0.0.1:${port}"
admin_listen = "127.0.0.1:${admin}"
audit_file = "${file('audit.jsonl')}"
[authserver]
issuer = "${issuer}"
base_domain = "bench.example"
database = "${file('authserver.db')}"
client_secret_file = "${file('gate-secret')}"
[[authserver.clients]]
id = "${client.id}"
secret_file = "${file('client-secret')}"
redirect_uris = ["${redirectUri}"]
`;
  writeFileSync(file('authserver.toml'), settings);
  const log = openSync(file('authserver.log'), 'a');
  const args = ['authserver', '--config', file('authserver.toml')];
  const server = pinned(core, binary, args, ['ignore', log, log], { RUST_LOG: 'warn' });
  closeSync(log);
  try {
    await ready(() => request(admin, '/readyz'), server, `see ${file('authserver.log')}`);
    const password = randomBytes(12).toString('hex');
    const person = ['--name', 'alice', '--email', 'alice@example.com', '--group', 'research'];
    const add = ['auth', 'user', 'add', '--database', file('authserver.db'), ...person];
    const added = spawnSync(binary, add, { input: password, encoding: 'utf8' });
    if (added.status !== 0) throw new Error(added.stderr);
    const endpoint = { port, path: '/token', client };
    const browser = await signIn(port, issuer, redirectUri, password);
    const tokens = [];
    for (let made = 0; made < families; made += 1) tokens.push(await browser.refreshToken(endpoint));
    const scopes = { access: 'profile email groups', both: 'openid profile email groups' };
    return { name: 'dormouse', endpoint, tokens, scopes, pid: server.child.pid, stop: server.stop };
  } catch (error) {
    await server.stop();
    throw error;
  }
}

async function ready(answer, { ended }, hint) {
  const end = Date.now() + START_WITHIN;
  let over = false;
  ended.then(() => {
    over = true;
  });
  for (;;) {
    const status = await answer().then((response) => response.status, () => 0);
    if (status === 200) return;
    if (over || Date.now() > end) throw new Error(`the server does not get ready; ${hint}`);
    await pause(50);
  }
}

/** A browser of somebody who signed in, as far as is needed here. */
async function signIn(port, issuer, redirectUri, password) {
  const cookies = new Map();
  const send = async (target, options = {}) => {
    const cookie = [...cookies].map(([name, value]) => `${name}=${value}`).join('; ');
    const response = await request(port, target, { ...options, headers: { ...options.headers, cookie } });
    for (const line of response.headers['set-cookie'] ?? []) {
      const [, name, value] = /^([^=]+)=([^;]*)/.exec(line);
      cookies.set(name, value);
    }
    return response;
  };
  const verifier = randomBytes(32).toString('base64url');
  const query = new URLSearchParams({
    response_type: 'code',
    client_id: client.id,
    redirect_uri: redirectUri,
    scope: 'openid profile email groups',
    code_challenge: createHash('sha256').update(verifier).digest('base64url'),
    code_challenge_method: 'S256',
  });
  const page = await send(`/authorize?${query}`);
  const ticket = /name="ticket" value="([^"]+)"/.exec(page.text)?.[1];
  if (!ticket) throw new Error(`no sign-in page: ${page.status} ${page.text}`);
  const body = new URLSearchParams({ ticket, name: 'alice', password }).toString();
  const headers = { origin: issuer, 'content-type': 'application/x-www-form-urlencoded' };
  const signedIn = await send('/sign-in', { method: 'POST', headers, body });
  if (signedIn.status !== 303) throw new Error(`signing in failed: ${signedIn.status} ${signedIn.text}`);
  const refreshToken = async (endpoint) => {
    const { headers: answered } = await send(`/authorize?${query}`);
    const code = new URL(answered.location).searchParams.get('code');
    const fields = { grant_type: 'authorization_code', code, redirect_uri: redirectUri, code_verifier: verifier };
    return (await tokenRequest(endpoint, fields)).refresh_token;
  };
  return { refreshToken };
}

/** `oidc-provider`, in the same form. */
export async function oidcProvider(core, families) {
  const script = fileURLToPath(new URL('oidc_provider.js', import.meta.url));
  const args = [script, client.id, client.secret, String(families)];
  const env = { NODE_ENV: 'production' };
  const server = pinned(core, process.execPath, args, ['pipe', 'pipe', 'inherit'], env);
  const lines = createInterface({ input: server.child.stdout });
  const said = new Promise((resolve) => lines.once('line', resolve));
  const line = await Promise.race([said, server.ended.then(() => undefined)]);
  if (!line) throw new Error('oidc-provider cannot be started; is it installed? Run scripts/setup bench');
  const { port, tokens } = JSON.parse(line);
  const scopes = { access: 'workload:use workload:manage', both: 'openid profile email workload:use workload:manage' };
  const endpoint = { port, path: '/token', client };
  return { name: 'oidc-provider', endpoint, tokens, scopes, pid: server.child.pid, stop: server.stop };
}
