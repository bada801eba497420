// Services that run by themselves beside an instance, and are upgraded in place.

import { spawn } from 'node:child_process';
import { copyFileSync, closeSync, linkSync, openSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import path from 'node:path';

import { run } from './command.js';
import { until } from './deadline.js';
import { binary, environment, freePort, temporaryFolder } from './instance.js';

export function isRunning(pid) {
  try {
    process.kill(pid, 0);
    // One that has ended and was not waited for is there as well.
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

function ready(adminPort) {
  return new Promise((resolve) => {
    const asked = http.get({ host: '127.0.0.1', port: adminPort, path: '/readyz', agent: false }, (response) => {
      response.resume();
      resolve(response.statusCode === 200);
    });
    asked.on('error', () => resolve(false));
  });
}

/** A folder with the program, settings and logs of services. */
export class Services {
  #started = new Set();
  #versions = [];

  constructor(instance, purpose) {
    this.instance = instance;
    this.folder = temporaryFolder(purpose);
  }

  file(name) {
    return path.join(this.folder, name);
  }

  get program() {
    return this.file('dormouse');
  }

  /** Puts the other of two copies where the program is started from, in one step, as an upgrade does. */
  install() {
    if (this.#versions.length === 0) {
      this.#versions = [this.file('one'), this.file('two')];
      for (const version of this.#versions) copyFileSync(binary, version);
    }
    this.#versions.reverse();
    linkSync(this.#versions[0], this.file('new'));
    renameSync(this.file('new'), this.program);
  }

  /** Starts one, and waits until it is ready. Answers its process. */
  async start(name, adminPort, settings) {
    const config = this.file(`${name}.toml`);
    writeFileSync(config, settings);
    const output = openSync(this.file(`${name}.log`), 'a');
    const child = spawn(this.program, [name, '--config', config], {
      stdio: ['ignore', output, output],
      env: { ...process.env, ...environment() },
    });
    closeSync(output);
    this.#started.add(child.pid);
    await until(`the ${name} to be ready`, () => ready(adminPort), { within: 60_000 });
    return child.pid;
  }

  /** The feed of revocations is for services alone, so a second authserver serves it. Answers its URL. */
  async authserver() {
    const [port, admin] = [await freePort(), await freePort()];
    const data = (name) => path.join(this.instance.dataDir, name);
    await this.start(
      'authserver',
      admin,
      `
listen = "127.0.0.1:${port}"
admin_listen = "127.0.0.1:${admin}"
audit_file = "${this.file('authserver-audit.jsonl')}"
[authserver]
issuer = "${this.instance.ready.issuer}"
base_domain = "localhost"
database = "${data('authserver.db')}"
master_key_file = "${data('master-key')}"
client_secret_file = "${data('gate-secret')}"
`,
    );
    return `http://127.0.0.1:${port}`;
  }

  /** The file of a proxy for that host, with a certificate of its own and an authserver beside; `grace` in milliseconds. */
  async proxySettings({ host, port, admin, grace }) {
    this.install();
    const request = ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', `/CN=${host}`];
    request.push('-addext', `subjectAltName=DNS:${host}`, '-keyout', this.file('tls.key'), '-out', this.file('tls.crt'));
    const made = await run('openssl', request);
    if (made.code !== 0) throw new Error(`openssl: ${made.stderr}`);
    const { ready, dataDir } = this.instance;
    return `
listen = "127.0.0.1:${port}"
admin_listen = "127.0.0.1:${admin}"
kubeconfig = "${ready.kubeconfig}"
audit_file = "${this.file('audit.jsonl')}"
[tls]
certificate_file = "${this.file('tls.crt')}"
key_file = "${this.file('tls.key')}"
[proxy]
base_domain = "localhost"
external_port = ${port}
issuer = "${ready.issuer}"
issuer_internal_url = "${await this.authserver()}"
client_secret_file = "${path.join(dataDir, 'gate-secret')}"
drain_grace = "${grace}ms"
`;
  }

  /** What a service has logged, as objects. */
  logged(name) {
    const lines = readFileSync(this.file(`${name}.log`), 'utf8').split('\n').filter((line) => line.startsWith('{'));
    return lines.flatMap((line) => {
      try {
        return [JSON.parse(line)];
      } catch {
        return [];
      }
    });
  }

  /** SIGQUIT: answers what is logged of it, once there is such a line. */
  async quit(name, pid, wanted) {
    const before = this.logged(name).length;
    process.kill(pid, 'SIGQUIT');
    return until(`the ${name} to hand over`, () => this.logged(name).slice(before).find(wanted), { within: 70_000, every: 20 });
  }

  /** Upgrades: answers the process that has taken over, and when it had. */
  async handOver(name, pid) {
    this.install();
    const said = await this.quit(name, pid, ({ process: next, message }) => next && /new process is ready/.test(message));
    this.#started.add(said.process);
    return { pid: said.process, at: Date.now() };
  }

  async stop(pid, within) {
    process.kill(pid, 'SIGTERM');
    await this.ended(pid, within);
  }

  async ended(pid, within) {
    await until('the old process to end', () => !isRunning(pid), { within, every: 50 });
  }

  /** Ends all that is left; keeps the logs for looking at when something failed. */
  remove(passed) {
    for (const pid of this.#started) {
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // It has ended.
      }
    }
    if (passed) rmSync(this.folder, { recursive: true, force: true });
  }
}
