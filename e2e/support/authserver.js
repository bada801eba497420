// An auth server by itself, without a proxy in front of it, and a company's identity provider beside it.

import { spawn } from 'node:child_process';
import { existsSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { until } from './deadline.js';
import { binary, freePort, repository, temporaryFolder } from './instance.js';
import { startProgram } from './program.js';

export const issuer = 'https://auth.localhost:8443';
const upstreams = path.join(repository, 'authserver', 'tests', 'upstream');
const upstreamSecret = 'a-secret-of-the-upstream-with-%-and-+';

/** Options for `test()`: skips with the reason when the provider's packages are not there. */
export const needsUpstream = existsSync(path.join(upstreams, 'node_modules', 'oidc-provider'))
  ? {}
  : { skip: 'oidc-provider is not installed; run scripts/setup test' };

/**
 * Starts `dormouse authserver` for people with passwords and for those of `providers`, each
 * `{ id, name, issuer }`. Answers `{ base, settings, audit, folder, stop }`; `base` is plain HTTP, `settings` and
 * `audit` are files.
 */
export async function startAuthserver(name, providers) {
  const folder = temporaryFolder(name);
  const [port, admin] = [await freePort(), await freePort()];
  const database = path.join(folder, 'auth.db');
  const audit = path.join(folder, 'audit.jsonl');
  const text = JSON.stringify;
  const secret = (file, value) => {
    writeFileSync(path.join(folder, file), value, { mode: 0o600 });
    return text(path.join(folder, file));
  };
  const provider = ({ id, name: shown, issuer: url }) => `
[[authserver.providers]]
id = ${text(id)}
name = ${text(shown)}
issuer = ${text(url)}
client_id = "dormouse"
client_secret_file = ${secret(`${id}-secret`, upstreamSecret)}
`;
  const settings = `
listen = "127.0.0.1:${port}"
admin_listen = "127.0.0.1:${admin}"
audit_file = ${text(audit)}

[authserver]
issuer = ${text(issuer)}
base_domain = "localhost"
database = ${text(database)}
client_secret_file = ${secret('gate-secret', 'g'.repeat(40))}
local_sign_in = true
${providers.map(provider).join('')}`;
  const file = path.join(folder, 'authserver.toml');
  writeFileSync(file, settings);
  const base = `http://127.0.0.1:${port}`;
  const url = `${base}/.well-known/openid-configuration`;
  const { stop } = await startProgram(`authserver-${name}`, binary, ['authserver', '--config', file], { url });
  return { base, settings: file, audit, folder, stop };
}

/** Starts the provider for the auth server's provider of that id. Answers `{ issuer, set, stop }`. */
export async function startUpstream(id) {
  const args = [path.join(upstreams, 'upstream.js'), `${issuer}/sign-in/from/${id}`];
  const child = spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'ignore'] });
  let said = '';
  child.stdout.on('data', (chunk) => {
    said += chunk;
  });
  const ended = new Promise((resolve) => {
    child.once('exit', resolve);
  });
  const port = await until('the provider to listen', () => /^(\d+)\n/.exec(said)?.[1], { within: 30_000, every: 50 });
  const url = `http://127.0.0.1:${port}`;
  return {
    issuer: url,
    /** Adds somebody to it. */
    async set(subject, claims) {
      const body = JSON.stringify({ claims, disabled: false });
      const response = await fetch(`${url}/people/${subject}`, { method: 'PUT', body });
      if (!response.ok) throw new Error(`the provider answered ${response.status}`);
    },
    async stop() {
      child.stdin.end();
      await ended;
    },
  };
}

/** Somebody's browser at such a server and its providers: cookies by origin, and no scripts. */
export class Visitor {
  #base;
  #subject;
  #jars = new Map();

  /** `subject`: as whom they sign in at providers. */
  constructor({ base }, subject) {
    this.#base = base;
    this.#subject = subject;
  }

  /** Sends one request, and follows where it leads: to a page, or to an address of another program. */
  async open(address, { form, stopAt = 'none:' } = {}) {
    let [url, body] = [new URL(address, this.#base), form && new URLSearchParams(form)];
    for (let hop = 0; hop < 20; hop += 1) {
      const { status, headers, text } = await this.#send(url, body);
      if (status < 300 || status >= 400) return { status, text, url: url.href };
      const to = headers.get('location').replace(issuer, this.#base);
      if (to.startsWith(stopAt)) return { status, text, url: to };
      url = new URL(to, url);
      body = undefined;
      if (url.pathname.startsWith('/interaction/')) url.searchParams.set('as', this.#subject);
    }
    throw new Error(`too many redirects from ${address}`);
  }

  async #send(url, body) {
    const jar = this.#jars.get(url.origin) ?? new Map();
    this.#jars.set(url.origin, jar);
    const headers = { accept: 'text/html', cookie: [...jar].map(([name, value]) => `${name}=${value}`).join('; ') };
    if (body) headers.origin = issuer;
    const response = await fetch(url, { method: body ? 'POST' : 'GET', body, headers, redirect: 'manual' });
    for (const line of response.headers.getSetCookie()) {
      const [, name, value] = /^([^=]+)=([^;]*)/.exec(line);
      if (value === '') jar.delete(name);
      else jar.set(name, value);
    }
    return { status: response.status, headers: response.headers, text: await response.text() };
  }
}
