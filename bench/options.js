// What the benchmarks are told on the command line.

import { parseArgs } from 'node:util';

/** The values of `options`. `--help` prints the usage; what is not known ends the program with it. */
export function read(usage, options) {
  const help = { type: 'boolean', short: 'h', default: false };
  let values;
  try {
    ({ values } = parseArgs({ options: { ...options, help } }));
  } catch (error) {
    console.error(`${error.message}\n\n${usage}`);
    process.exit(2);
  }
  if (values.help) {
    console.log(usage);
    process.exit(0);
  }
  return values;
}
