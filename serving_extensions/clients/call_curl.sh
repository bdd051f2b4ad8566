curl --fail-with-body \
  -X '@METHOD@' \
  -H 'Authorization: Bearer @KEY@' \
  -H 'Content-Type: @TYPE@' \
  -d '@BODY@' \
  '@URL@'
