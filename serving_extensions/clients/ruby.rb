# Prints what the model sees in a picture, as JSON.
require "json"
require "net/http"

URL = '@URL@'
KEY = '@KEY@'
ROUTINES = JSON.parse('@ROUTINES@')

picture = File.binread(ARGV[0])
body = { image_type: "base64", data: [picture].pack("m0"), routines: ROUTINES }
headers = { "Authorization" => "Bearer #{KEY}", "Content-Type" => "application/json" }
response = Net::HTTP.post(URI(URL), body.to_json, headers)

abort response.body if response.code != "200"
puts response.body
