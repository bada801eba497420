// Replacing a running SSH gateway: sessions that are open go on in the old process, new ones come to
// the new process, and none is refused in between.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import path from 'node:path';
import { after, test } from 'node:test';

import { needs } from '../support/command.js';
import { until, withDeadline } from '../support/deadline.js';
import { freePort, sharedInstance } from '../support/instance.js';
import { SshHome } from '../support/openssh.js';
import { Services, isRunning } from '../support/service.js';

/** How long sessions may go on after a hand-over. */
const DRAIN = 15_000;
const WORKERS = 2;

const instance = await sharedInstance();
const services = new Services(instance, 'upgrade-ssh');
const withSsh = instance.workload('lab') ? needs('ssh') : { skip: 'the instance has no workspace `lab`' };
const [port, admin] = [await freePort(), await freePort()];
const home = new SshHome({ ready: { ssh: { host: '127.0.0.1', port } } }, { token: instance.token('alice') });
const data = (name) => path.join(instance.dataDir, name);
let passed = false;
after(() => services.remove(passed));

async function prepare() {
  services.install();
  const issuer = await services.authserver();
  return services.start(
    'ssh-gateway',
    admin,
    `
listen = "127.0.0.1:${port}"
admin_listen = "127.0.0.1:${admin}"
kubeconfig = "${instance.ready.kubeconfig}"
audit_file = "${services.file('audit.jsonl')}"
base_domain = "localhost"
[issuer]
url = "${instance.ready.issuer}"
internal_url = "${issuer}"
[ssh]
host_key_file = "${data('ssh_host_key')}"
client_key_file = "${data('ssh_agent_client_key')}"
keys_url = "${issuer}/internal/ssh-keys"
client_secret_file = "${data('gate-secret')}"
drain = "${DRAIN}ms"
`,
  );
}

/** When somebody last did something in the workspace, as the process that serves the admin port knows. */
async function lastDoing() {
  const { changes } = await (await fetch(`http://127.0.0.1:${admin}/activity?since=0`)).json();
  const lab = changes.find(({ workload }) => workload.name === 'lab');
  return Date.parse(lab?.last?.at ?? 0);
}

/** A session that says what it is told. */
class Session {
  constructor() {
    this.child = spawn('ssh', [...home.sshArguments(), 'cat'], {
      stdio: ['pipe', 'pipe', 'pipe'],
      env: { ...process.env, ...home.environment },
    });
    after(() => this.child.kill('SIGKILL'));
    this.said = '';
    for (const output of [this.child.stdout, this.child.stderr]) {
      output.on('data', (chunk) => {
        this.said += chunk;
      });
    }
    this.ended = new Promise((resolve) => {
      this.child.once('exit', (code) => resolve({ code, at: Date.now() }));
    });
  }

  async echoes(word) {
    this.child.stdin.write(`${word}\n`);
    await until(`the session to say ${word}`, () => {
      if (this.child.exitCode !== null) throw new Error(`ssh ended: ${this.said}`);
      return this.said.includes(word);
    }, { within: 60_000 });
  }

  async end() {
    this.child.stdin.end();
    return withDeadline('the session to end', 20_000, this.ended);
  }
}

test('attack_26: an upgrade of the SSH gateway ends no session and refuses none', { ...withSsh, timeout: 300_000 }, async (t) => {
  let pid = await prepare();
  let sessions = 0;
  const failures = [];
  let stopped = false;
  const work = async () => {
    while (!stopped) {
      const { stdout, stderr, code } = await home.exec('echo in');
      if (stdout === 'in\n' && code === 0) sessions += 1;
      else failures.push(`${code}: ${stdout}${stderr}`);
    }
  };
  const working = Array.from({ length: WORKERS }, work);
  const served = async () => {
    const so = sessions;
    await until('sessions to be opened', () => sessions >= so + 2 * WORKERS, { within: 60_000 });
  };
  await served();
  for (let upgrade = 1; upgrade <= 3; upgrade += 1) {
    const open = new Session();
    await open.echoes(`before-${upgrade}`);
    const next = await services.handOver('ssh-gateway', pid);
    const typed = Date.now();
    await open.echoes(`behind-${upgrade}`);
    await until('the new process to know what is typed in a session of the old one', async () => (await lastDoing()) >= typed);
    assert.equal(isRunning(pid), true, 'the old process goes on for what is open');
    assert.equal((await open.end()).code, 0);
    // With nothing left to do it waits for no time to pass.
    await services.ended(pid, DRAIN / 2);
    pid = next.pid;
    await served();
    assert.deepEqual(failures, [], `upgrade ${upgrade}`);
  }
  // What stays open for longer than it may is ended, and not before.
  const long = new Session();
  await long.echoes('before-the-last');
  const last = await services.handOver('ssh-gateway', pid);
  const { at } = await withDeadline('the end of the drain', DRAIN + 20_000, long.ended);
  assert.ok(at - last.at > DRAIN - 500, `ended ${at - last.at} ms after the hand-over`);
  await services.ended(pid, 10_000);

  stopped = true;
  await withDeadline('the sessions to end', 60_000, Promise.all(working));
  t.diagnostic(`${sessions} sessions, ${failures.length} failed`);
  assert.deepEqual(failures, []);
  await services.stop(last.pid, DRAIN + 10_000);
  passed = true;
});
