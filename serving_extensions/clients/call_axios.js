// Prints what the server answers.
import axios from "axios";

const { status, data } = await axios.request({
  method: "@METHOD@",
  url: "@URL@",
  headers: {
    Authorization: "Bearer @KEY@",
    "Content-Type": "@TYPE@",
  },
  data: '@BODY@',
  responseType: "text",
  validateStatus: null,
});

if (status < 300) {
  console.log(data);
} else {
  console.error(data);
  process.exitCode = 1;
}
