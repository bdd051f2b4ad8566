// Datature's published example, word for word.
const axios = require("axios");

axios
  .post(
    "https://<REGION>.inference.datature.io/75965b90-d29f-4981-8935-59ff53e1d35d/predict",
    {
      data: "https://YOUR_IMAGE.jpg",
      image_type: "url",
    },
    {
      headers: {
        Authorization:
          "Bearer YOUR_SECRET_HASH",
        "Content-Type": "application/json; charset=utf-8",
      },
    }
  )
  .then((response) => console.log(response.data));
