// A program in a real pseudo-terminal, through Python's pty module.

import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';

import { until } from './deadline.js';

const driver = fileURLToPath(new URL('terminal_driver.py', import.meta.url));

export class Terminal {
  constructor(command, { rows = 24, columns = 80, env } = {}) {
    this.output = '';
    this.child = spawn('python3', [driver, String(rows), String(columns), ...command], {
      stdio: ['pipe', 'pipe', 'inherit'],
      env: { ...process.env, ...env },
    });
    this.child.stdout.on('data', (chunk) => {
      this.output += chunk;
    });
    // Writing to a program that has ended is the test's to notice, by what it waits for.
    this.child.stdin.on('error', () => {});
    this.exited = new Promise((resolve) => {
      this.child.once('close', (code) => {
        this.code = code;
        resolve(code);
      });
    });
  }

  type(text) {
    this.child.stdin.write(`${JSON.stringify({ write: text })}\n`);
  }

  resize(rows, columns) {
    this.child.stdin.write(`${JSON.stringify({ resize: [rows, columns] })}\n`);
  }

  /** Waits until what was written since `from` matches. */
  async see(pattern, { within = 20_000, from = 0 } = {}) {
    const shown = () => pattern.test(this.output.slice(from));
    try {
      await until(`the terminal to show ${pattern}`, () => shown() || this.code !== undefined, { within, every: 50 });
      if (!shown()) throw new Error(`the program ended with code ${this.code} before it showed ${pattern}`);
    } catch (error) {
      throw new Error(`${error.message}; it shows:\n${this.output.slice(from)}`, { cause: error });
    }
  }

  close() {
    this.child.kill('SIGTERM');
  }
}
