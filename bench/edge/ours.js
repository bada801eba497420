// `dormouse proxy` as in production: a process of its own, everything on.

import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { expectStatus } from './http.js';
import { CORE, freePort, ready, start } from './processes.js';
import { AUDIENCE, DOMAIN, HOST, ISSUER } from './system.js';

async function dormouse(system, { tls = false, fastLane = true }) {
  const [port, plain, admin] = [await freePort(), await freePort(), await freePort()];
  const folder = path.join(system.folder, `dormouse-${port}`);
  mkdirSync(folder, { recursive: true });
  const settings = path.join(folder, 'proxy.toml');
  writeFileSync(settings, `
listen = "127.0.0.1:${port}"
admin_listen = "127.0.0.1:${admin}"
audit_file = "${folder}/audit.jsonl"
audience = "${AUDIENCE}"
kubeconfig = "${system.kubeconfig}"
[plain]
listen = "127.0.0.1:${plain}"
[tls]
certificate_file = "${system.folder}/tls.crt"
key_file = "${system.folder}/tls.key"
[proxy]
base_domain = "${DOMAIN}"
issuer = "${ISSUER}"
issuer_internal_url = "http://127.0.0.1:${system.authserver.port}"
client_secret_file = "${system.authserver.secretFile}"
fast_lane = ${fastLane}
`);
  const log = path.join(folder, 'log');
  const process = start('dormouse proxy', CORE.proxy, system.binary, ['proxy', '--config', settings], { log });
  const stop = () => process.stop();
  try {
    await ready(process, () => expectStatus(admin, '/readyz', 200));
    const headers = { host: HOST, authorization: `Bearer ${system.tokens[0]}` };
    await ready(process, () => expectStatus(tls ? port : plain, '/1k', 200, { headers, tls: tls && HOST }));
  } catch (error) {
    await stop();
    throw error;
  }
  return { port: tls ? port : plain, admin, processes: [process], log, stop };
}

export const ours = [
  {
    id: 'ours',
    title: 'Dormouse, fast lane',
    needs: [],
    verifies: true,
    many: true,
    start: (system) => dormouse(system, {}),
    streams: true,
    calls: true,
  },
  {
    id: 'ours-general',
    title: 'Dormouse, general path',
    needs: [],
    verifies: true,
    many: true,
    start: (system) => dormouse(system, { fastLane: false }),
    streams: true,
    calls: true,
  },
  {
    id: 'ours-tls',
    title: 'Dormouse, over TLS',
    needs: [],
    verifies: true,
    start: (system) => dormouse(system, { tls: true }),
    streams: true,
    tls: true,
  },
];
