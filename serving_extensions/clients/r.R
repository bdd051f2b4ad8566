# Prints what the model sees in a picture, as JSON.
library(httr)

url <- "@URL@"
key <- "@KEY@"
routines <- '@ROUTINES@'

picture <- commandArgs(trailingOnly = TRUE)[1]
data <- gsub("\n", "", jsonlite::base64_enc(readBin(picture, "raw", file.size(picture))))
body <- paste0('{"image_type": "base64", "data": "', data, '", "routines": ', routines, "}")
response <- POST(url, add_headers(Authorization = paste("Bearer", key)), content_type_json(), body = body)
answer <- rawToChar(content(response, "raw"))

if (status_code(response) != 200) {
  cat(answer, "\n", sep = "", file = stderr())
  quit(status = 1)
}
cat(answer, "\n", sep = "")
