// A service in TypeScript that asks Texture Auth, as far as tests need one.
//
//   main.js story           plays the story of the service and checks every answer
//   main.js failure CASE    asks while something is wrong, and prints 'FAILURE CASE CODE REASON'
//
// tests/languages starts it, and says where the service is.

import { setting } from "./ask.js";
import { playFailure } from "./failures.js";
import { Story } from "./story.js";

const [command, name] = process.argv.slice(2);
try {
  if (command === "story") await new Story(setting("NAME")).play();
  else if (command === "failure" && name !== undefined) await playFailure(name);
  else throw new Error("usage: main.js story | main.js failure CASE");
  // Connections are kept for a while.
  process.exit(0);
} catch (error) {
  console.error(error instanceof Error ? error.message : String(error));
  process.exit(1);
}
