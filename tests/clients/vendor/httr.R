# Datature's published example, word for word.
require(httr)

headers = c(
  `Authorization` = 'Bearer YOUR_SECRET_HASH',
  `Content-Type` = 'application/json; charset=utf-8'
)

data = '{ "data": "https://YOUR_IMAGE.jpg", "image_type": "url" }'

res <- httr::POST(url = 'https://<REGION>.inference.datature.io/75965b90-d29f-4981-8935-59ff53e1d35d/predict', httr::add_headers(.headers=headers), body = data)

content(res, "text")
