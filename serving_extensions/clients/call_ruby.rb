# Prints what the server answers.
require "net/http"

uri = URI('@URL@')
request = Net::HTTP.const_get('@METHOD@'.capitalize).new(uri)
request["Authorization"] = 'Bearer @KEY@'
request["Content-Type"] = '@TYPE@'
request.body = '@BODY@'
response = Net::HTTP.start(uri.host, uri.port, use_ssl: uri.scheme == "https") { |http| http.request(request) }

abort response.body unless response.is_a?(Net::HTTPSuccess)
puts response.body
