// OpenSSH, signing in with a token as password or with a key.

import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { spawn } from 'node:child_process';

import { run } from './command.js';
import { temporaryFolder } from './instance.js';

/** One person's `~/.ssh`: known hosts, and a program that answers the password prompt. */
export class SshHome {
  constructor(instance, { token, identity } = {}) {
    this.instance = instance;
    this.token = token;
    this.identity = identity;
    this.folder = temporaryFolder('ssh');
    this.knownHosts = path.join(this.folder, 'known_hosts');
    this.askpass = path.join(this.folder, 'askpass');
    mkdirSync(this.folder, { recursive: true });
    writeFileSync(this.askpass, '#!/bin/sh\nprintf "%s\\n" "$DORMOUSE_E2E_TOKEN"\n');
    chmodSync(this.askpass, 0o700);
  }

  /** Options that ssh, scp and sftp share. */
  options({ strict = 'accept-new' } = {}) {
    const options = ['-F', '/dev/null', '-o', `UserKnownHostsFile=${this.knownHosts}`];
    options.push('-o', `StrictHostKeyChecking=${strict}`, '-o', 'NumberOfPasswordPrompts=1');
    options.push('-o', 'ConnectTimeout=20', '-o', 'LogLevel=ERROR');
    if (this.identity) {
      options.push('-i', this.identity, '-o', 'IdentitiesOnly=yes', '-o', 'PreferredAuthentications=publickey');
    } else {
      options.push('-o', 'PreferredAuthentications=password', '-o', 'PubkeyAuthentication=no');
    }
    return options;
  }

  get environment() {
    // An agent's keys would be tried first.
    return {
      SSH_ASKPASS: this.askpass,
      SSH_ASKPASS_REQUIRE: 'force',
      DISPLAY: 'none',
      SSH_AUTH_SOCK: '',
      DORMOUSE_E2E_TOKEN: this.token ?? '',
    };
  }

  /** `user@host` of a workspace. */
  destination(user = 'lab') {
    return `${user}@${this.instance.ready.ssh.host}`;
  }

  /** Arguments of `ssh` up to and with the destination. */
  sshArguments({ user, flags = [], ...options } = {}) {
    return [...this.options(options), '-p', String(this.instance.ready.ssh.port), ...flags, this.destination(user)];
  }

  /** Runs one command in the workspace. */
  exec(command, { user, flags, strict, input, within } = {}) {
    const args = [...this.sshArguments({ user, flags, strict }), command];
    return run('ssh', args, { env: this.environment, input, within });
  }

  /** Copies as scp does; `remote:` at the start of a path is the workspace. */
  scp(from, to, { within } = {}) {
    const place = (one) => one.replace(/^remote:/, `${this.destination()}:`);
    const args = [...this.options(), '-P', String(this.instance.ready.ssh.port), place(from), place(to)];
    return run('scp', args, { env: this.environment, within });
  }

  /** Runs a batch of sftp commands; the first that fails ends it with an error. */
  sftp(commands) {
    // -b alone would turn passwords off.
    const args = ['-o', 'BatchMode=no', ...this.options(), '-P', String(this.instance.ready.ssh.port)];
    args.push('-b', '-', this.destination());
    return run('sftp', args, { env: this.environment, input: `${commands.join('\n')}\n` });
  }

  /** A client that stays, as for forwarding. Answers the child process; its stderr is in `.said`. */
  background(flags, { user, command } = {}) {
    const args = [...this.sshArguments({ user, flags }), ...(command ? [command] : [])];
    const child = spawn('ssh', args, {
      stdio: ['ignore', 'ignore', 'pipe'],
      env: { ...process.env, ...this.environment },
    });
    child.said = '';
    child.stderr.on('data', (chunk) => {
      child.said += chunk;
    });
    return child;
  }
}
