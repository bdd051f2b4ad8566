// Prints what the server answers.
const response = await fetch("@URL@", {
  method: "@METHOD@",
  headers: {
    Authorization: "Bearer @KEY@",
    "Content-Type": "@TYPE@",
  },
  body: '@BODY@',
});
const answer = await response.text();

if (response.ok) {
  console.log(answer);
} else {
  console.error(answer);
  process.exitCode = 1;
}
