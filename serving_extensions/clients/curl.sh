curl --fail-with-body \
  -H 'Authorization: Bearer @KEY@' \
  -F image=@picture.jpg \
  --form-string 'routines=@ROUTINES@' \
  '@URL@'
