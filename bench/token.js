// How many refresh grants a second one core answers, beside RSA signatures a second of the same core.

import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { refreshFor } from './load.js';
import { read } from './options.js';
import { dormouse, oidcProvider, opensslSignatures, processorTime } from './servers.js';

const here = fileURLToPath(new URL('.', import.meta.url));
const target = process.env.CARGO_TARGET_DIR ?? path.join(here, '..', 'target');
const usage = `Refresh grants a second of one core, beside RSA signatures a second of the same core.

usage: node bench/token.js [--binary FILE] [--rounds N] [--seconds S] [--families N]

  node bench/token.js --rounds 9 --seconds 8`;
const values = read(usage, {
  binary: { type: 'string', default: path.join(target, 'release', 'dormouse') },
  rounds: { type: 'string', default: '5' },
  seconds: { type: 'string', default: '4' },
  families: { type: 'string', default: '16' },
});
const number = (name) => {
  const value = Number(values[name]);
  if (Number.isInteger(value) && value > 0) return value;
  throw new Error(`--${name} ${values[name]} is no whole number above 0`);
};

function median(numbers) {
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** `median (least to most)`. */
function spread(numbers, digits) {
  const [middle, least, most] = [median(numbers), Math.min(...numbers), Math.max(...numbers)].map((one) => one.toFixed(digits));
  return `${middle} (${least} to ${most})`;
}

function table(rows) {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  const lines = rows.map((row) => `| ${row.map((cell, column) => cell.padEnd(widths[column])).join(' | ')} |`);
  lines.splice(1, 0, `| ${widths.map((width) => '-'.repeat(width)).join(' | ')} |`);
  return lines.join('\n');
}

async function main() {
  const [rounds, seconds, families] = ['rounds', 'seconds', 'families'].map(number);
  if (!existsSync(values.binary)) throw new Error(`${values.binary} is not there; run \`make bench\`, which builds it`);
  const cores = os.availableParallelism();
  const core = os.cpus().length - 1;
  if (cores > 1) {
    // The load shall not take from what it measures.
    const others = core === 1 ? '0' : `0-${core - 1}`;
    spawnSync('taskset', ['-a', '-c', '-p', others, String(process.pid)]);
  } else {
    console.error('there is one core only, so the load takes from what it measures');
  }

  const folder = mkdtempSync(path.join(os.tmpdir(), 'dormouse-bench-'));
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
  for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(130));
  const servers = [];
  try {
    servers.push(await dormouse(core, values.binary, folder, families));
    servers.push(await oidcProvider(core, families));
    const work = { access: 1, both: 2 };
    const grants = servers.flatMap(({ name, endpoint, tokens, scopes, pid }) =>
      Object.entries(work).map(([kind, signatures]) => ({
        label: `${name}, ${kind === 'access' ? 'access token' : 'access and ID token'}`,
        signatures,
        measure: async (duration) => {
          const before = processorTime(pid);
          const rate = await refreshFor(duration, endpoint, tokens, { scope: scopes[kind], signatures });
          return { rate, perCpu: (rate * duration) / (processorTime(pid) - before) };
        },
        results: [],
      })),
    );
    // Caches and just-in-time compilers, before anything counts.
    for (const { measure } of grants) await measure(Math.min(seconds, 2));

    const base = {
      results: [],
      measure: () => {
        const each = Math.max(1, Math.round(seconds / 2));
        return { rate: opensslSignatures(core, each, true), perCpu: opensslSignatures(core, each, false) };
      },
    };
    const all = [base, ...grants];
    for (let round = 0; round < rounds; round += 1) {
      const first = round % all.length;
      for (const one of [...all.slice(first), ...all.slice(0, first)]) one.results.push(await one.measure(seconds));
      console.error(`round ${round + 1} of ${rounds}`);
    }

    const columns = ['a second', 'ratio to OpenSSL', 'a second of CPU', 'ratio to OpenSSL'];
    const rows = [['refresh grants on one core', 'signatures each', ...columns]];
    for (const { label, signatures, results } of grants) {
      const cells = ['rate', 'perCpu'].flatMap((what) => {
        const values = results.map((result) => result[what]);
        const ratios = values.map((value, round) => value / base.results[round][what]);
        return [spread(values, 0), spread(ratios, 2)];
      });
      rows.push([label, String(signatures), ...cells]);
    }
    const signatures = (what) => spread(base.results.map((result) => result[what]), 0);
    const openssl = spawnSync('openssl', ['version'], { encoding: 'utf8' }).stdout.trim();
    const report = [
      `${openssl}, rsa2048: ${signatures('rate')} signatures a second, ${signatures('perCpu')} a second of CPU.`,
      `Median (least to most) of ${rounds} rounds of ${seconds} s, ${families} refreshes at a time.`,
      `${os.cpus()[0].model}, core ${core} of ${os.cpus().length}; Node.js ${process.version}; ${path.resolve(values.binary)}.`,
      '',
      table(rows),
      '',
    ].join('\n');
    console.log(report);
    const stamp = new Date().toISOString().replaceAll(':', '').slice(0, 17);
    writeFileSync(path.join(here, 'results', `token-${stamp}.md`), report);
  } finally {
    await Promise.all(servers.map(({ stop }) => stop()));
  }
}

main().catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
