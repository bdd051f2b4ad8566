# Prints what the server answers.
library(httr)

response <- VERB(
  "@METHOD@",
  add_headers(Authorization = "Bearer @KEY@"),
  content_type("@TYPE@"),
  body = '@BODY@',
  url = "@URL@"
)
answer <- rawToChar(content(response, "raw"))

if (status_code(response) >= 300) {
  cat(answer, "\n", sep = "", file = stderr())
  quit(status = 1)
}
cat(answer, "\n", sep = "")
