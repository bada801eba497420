// `*.localhost` is loopback for Node, as RFC 6761 (section 6.3) has it and browsers do. Loaded with
// `node --require` before a test's program: not every resolver knows these names.
const dns = require('node:dns');

const resolve = dns.lookup;

dns.lookup = (hostname, ...rest) => resolve(hostname.endsWith('.localhost') ? '127.0.0.1' : hostname, ...rest);
