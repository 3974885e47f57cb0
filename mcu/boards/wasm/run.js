// Runs a check program in node: `node run.js PROGRAM`. It prints what the program prints and ends with its exit status.
const {readFileSync, writeSync} = require("node:fs");

const imports = {
  write: (text, bytes) => writeSync(1, new Uint8Array(program.exports.memory.buffer, text, bytes)),
  nanoseconds: () => Number(process.hrtime.bigint()),
};
const program = new WebAssembly.Instance(new WebAssembly.Module(readFileSync(process.argv[2])), {board: imports});
process.exitCode = program.exports.run();
