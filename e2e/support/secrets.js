// Looking for what must never be in a log: tokens, cookies of sessions, codes and states of sign-ins.

import { existsSync, readFileSync, readdirSync, statSync } from 'node:fs';
import path from 'node:path';

const patterns = {
  'a signed token': /eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}/,
  'the payload of a token': /(?<![\w-])eyJ[\w-]{60,}/,
  'a session cookie': /__Host-dormouse[\w-]*=[\w.~+/=-]{8,}/,
  'a code, state or token of a sign-in': /[?&](?:code|state|nonce|id_token|access_token|refresh_token|code_verifier)=[\w.%-]{8,}/,
  'a credential': /\b(?:Bearer|Basic) [\w.~+/=-]{16,}/i,
};

/** What of it is in a text: `[{ what, line }]`. `known`: texts that are secret whatever they look like. */
export function secretsIn(text, known = []) {
  const found = [];
  for (const line of text.split('\n')) {
    for (const [what, pattern] of Object.entries(patterns)) {
      if (pattern.test(line)) found.push({ what, line });
    }
    if (known.some((secret) => line.includes(secret))) found.push({ what: 'a known secret', line });
  }
  return found;
}

/** Logs below a folder. */
function logs(folder) {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const file = path.join(folder, entry.name);
    if (entry.isDirectory()) return logs(file);
    return entry.isFile() && /\.(log|jsonl)$|^log$/.test(entry.name) && statSync(file).size > 0 ? [file] : [];
  });
}

/** The same in all logs of some folders: `[{ what, line, file }]`. */
export function secretsInLogs(folders, known) {
  const files = [...new Set(folders.flatMap(logs))];
  const found = files.flatMap((file) => secretsIn(readFileSync(file, 'utf8'), known).map((one) => ({ ...one, file })));
  return { files, found };
}

/** Lines for an error message; the secrets themselves are not repeated. */
export function describe(found) {
  return found.slice(0, 20).map(({ what, line, file }) => `${file}: ${what}: ${line.slice(0, 60)}...`).join('\n');
}
