// Starting and stopping `dormouse dev`.

import { spawn } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import net from 'node:net';
import { randomUUID } from 'node:crypto';
import { after } from 'node:test';
import { fileURLToPath } from 'node:url';

import { run } from './command.js';
import { until } from './deadline.js';
import { processesOf, stillThere } from './processes.js';

export const repository = fileURLToPath(new URL('../..', import.meta.url));
const target = process.env.CARGO_TARGET_DIR ?? path.join(repository, 'target');
export const binary = process.env.DORMOUSE_E2E_BINARY ?? path.join(target, 'debug', 'dormouse');
const venv = process.env.DORMOUSE_E2E_VENV ?? path.join(repository, '.dev', 'venv');
/** Another API server to run against, or undefined for the embedded one. */
export const foreignKubeconfig = process.env.DORMOUSE_E2E_KUBECONFIG;
const artifacts = path.join(repository, 'e2e', 'artifacts');

const START_WITHIN = 120_000;
const STOP_WITHIN = 30_000;

/** What `dormouse` is run with: the virtual environment first on the PATH. */
export function environment(extra = {}) {
  return { PATH: `${path.join(venv, 'bin')}${path.delimiter}${process.env.PATH}`, ...extra };
}

/** A TCP port of 127.0.0.1 that nobody listens on now. */
export function freePort() {
  return new Promise((resolve, reject) => {
    const server = net.createServer();
    server.on('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

/** A new folder under the system's temporary one. */
export function temporaryFolder(purpose) {
  return mkdtempSync(path.join(tmpdir(), `dormouse-e2e-${purpose}-`));
}

/** One `dormouse dev`, running or not: its data directory and ports stay over restarts. */
export class Instance {
  constructor(description) {
    Object.assign(this, description);
  }

  /** `name` names the log; `flags` go to `dormouse dev` as they are. */
  static async create(name, flags = []) {
    // On a foreign cluster the workloads outlive the instance, and so must what belongs to them.
    const kept = process.env.DORMOUSE_E2E_KEPT && JSON.parse(process.env.DORMOUSE_E2E_KEPT);
    const place = kept ?? (await Instance.newPlace(name));
    return new Instance({ name, flags, mark: randomUUID(), ...place });
  }

  static async newPlace(name) {
    const httpsPort = await freePort();
    let sshPort = await freePort();
    while (sshPort === httpsPort) sshPort = await freePort();
    return { dataDir: temporaryFolder(name), httpsPort, sshPort };
  }

  get readyFile() {
    return path.join(this.dataDir, 'e2e-ready.json');
  }

  get logFile() {
    return path.join(artifacts, `${this.name}.log`);
  }

  /** The command line of `dormouse`, as an array. */
  commandLine() {
    const args = ['dev', '--data-dir', this.dataDir, '--https-port', String(this.httpsPort)];
    args.push('--ssh-port', String(this.sshPort), '--ready-file', this.readyFile);
    if (foreignKubeconfig) args.push('--kubeconfig', foreignKubeconfig);
    return [...args, ...this.flags];
  }

  /** Starts the process, and does not wait for anything. */
  spawn() {
    if (!existsSync(binary)) throw new Error(`${binary} is not there; run \`make e2e\`, which builds it`);
    mkdirSync(artifacts, { recursive: true });
    rmSync(this.readyFile, { force: true });
    const log = openSync(this.logFile, 'a');
    this.child = spawn(binary, this.commandLine(), {
      stdio: ['ignore', log, log],
      env: { ...process.env, ...environment({ DORMOUSE_E2E_MARK: this.mark }) },
    });
    closeSync(log);
    this.pid = this.child.pid;
    this.ended = new Promise((resolve) => {
      this.child.once('exit', (code, signal) => resolve({ code, signal }));
    });
  }

  /** Starts it and waits for the ready file. Answers itself. */
  async start() {
    const started = Date.now();
    this.spawn();
    const ready = () => {
      if (existsSync(this.readyFile)) return true;
      if (this.exitState()) throw new Error(`it ended with ${JSON.stringify(this.exitState())}`);
      return false;
    };
    try {
      await until('the ready file of `dormouse dev`', ready, { within: START_WITHIN, every: 100 });
    } catch (error) {
      this.kill();
      throw new Error(`${error.message}\n${this.logTail()}`, { cause: error });
    }
    this.secondsToReady = (Date.now() - started) / 1000;
    return this.read();
  }

  /** Takes in the ready file. */
  read() {
    this.ready = JSON.parse(readFileSync(this.readyFile, 'utf8'));
    this.ca = readFileSync(this.ready.ca);
    return this;
  }

  user(name) {
    const found = this.ready.users.find((user) => user.name === name);
    if (!found) throw new Error(`the ready file names no user ${name}`);
    return found;
  }

  token(name) {
    return this.user(name).token;
  }

  /** The workload of that name as the ready file describes it, or undefined. */
  workload(name) {
    return this.ready.workloads.find((workload) => workload.name === name);
  }

  /** Where its workloads are: on another cluster not called as here. */
  get project() {
    return this.workload('echo').project;
  }

  /** URL of a workload, with a path. */
  url(name, pathname = '/') {
    return new URL(pathname, this.workload(name).url).href;
  }

  /** Runs another `dormouse` command. */
  dormouse(args, options = {}) {
    return run(binary, args, { ...options, env: environment(options.env) });
  }

  /** A token for a test of tokens: `flags` as of `dormouse auth token`. */
  async issueToken(user, ...flags) {
    const result = await this.dormouse(['auth', 'token', '--data-dir', this.dataDir, '--user', user, ...flags]);
    if (result.code !== 0) throw new Error(`dormouse auth token: ${result.stderr}`);
    return result.stdout.trim();
  }

  processes() {
    return processesOf(this);
  }

  /**
   * As Ctrl-C does, or another signal. Fails when it does not end, ends with an error, or leaves a
   * process behind: what it started has to be gone when it is.
   */
  async stop(signal = 'SIGINT') {
    if (!this.child || this.exitState()) return;
    const before = this.processes();
    this.child.kill(signal);
    try {
      const end = await until('`dormouse dev` to end', () => this.exitState(), { within: STOP_WITHIN, every: 50 });
      if (end.code !== 0) throw new Error(`\`dormouse dev\` ended with ${JSON.stringify(end)} after ${signal}`);
      await this.nothingLeft(before, 1_000);
    } catch (error) {
      this.kill();
      throw new Error(`${error.message}\n${this.logTail()}`, { cause: error });
    }
  }

  exitState() {
    const { exitCode, signalCode } = this.child;
    return exitCode === null && signalCode === null ? undefined : { code: exitCode, signal: signalCode };
  }

  /** Fails when any process of it is still there after a moment. `before`: those that were seen earlier. */
  async nothingLeft(before, within = 15_000) {
    let left = [];
    const gone = () => {
      left = [...new Map([...stillThere(before), ...this.processes()].map((one) => [one.pid, one])).values()];
      return left.length === 0;
    };
    try {
      await until('every process to be gone', gone, { within, every: 100 });
    } catch {
      const lines = left.map(({ pid, command }) => `${pid} ${command.slice(0, 160)}`);
      throw new Error(`processes left behind:\n${lines.join('\n')}`);
    }
  }

  /** kill -9, as a crash. */
  async crash() {
    this.child.kill('SIGKILL');
    await this.ended;
  }

  /** Last resort: everything of it, at once. */
  kill() {
    for (const { pid } of this.processes()) {
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // Gone in the meantime.
      }
    }
  }

  /** The end of its log, for an error message. */
  logTail(lines = 40) {
    if (!existsSync(this.logFile)) return '';
    const all = readFileSync(this.logFile, 'utf8').trimEnd().split('\n');
    return `--- end of ${path.relative(repository, this.logFile)} ---\n${all.slice(-lines).join('\n')}`;
  }

  /** What another process needs to join in. */
  description() {
    const { name, flags, mark, dataDir, httpsPort, sshPort, pid } = this;
    return { name, flags, mark, dataDir, httpsPort, sshPort, pid };
  }

  remove() {
    if (!process.env.DORMOUSE_E2E_KEPT) rmSync(this.dataDir, { recursive: true, force: true });
  }
}

/**
 * The instance that the test files share: the runner's when there is one, else one that lives as
 * long as the file. Call it at the top of a test file.
 */
export async function sharedInstance() {
  const shared = process.env.DORMOUSE_E2E_SHARED;
  if (shared) return new Instance(JSON.parse(shared)).read();
  return ownInstance(`shared-${process.pid}`);
}

/** A running instance of this file's own; stopped, and looked after for orphans, at its end. */
export async function ownInstance(name, flags = []) {
  const instance = await (await Instance.create(name, flags)).start();
  after(async () => {
    await instance.stop();
    instance.remove();
  });
  return instance;
}
