# Datature's published example, word for word, but for the `end` that the page leaves out after `http.request(req)`.
require 'net/http'
require 'json'

uri = URI('https://<REGION>.inference.datature.io/75965b90-d29f-4981-8935-59ff53e1d35d/predict')
req = Net::HTTP::Post.new(uri)
req.content_type = 'application/json; charset=utf-8'
req['Authorization'] = 'Bearer YOUR_SECRET_HASH'

req.body = {
  'data' => 'https://YOUR_IMAGE.jpg',
  'image_type' => 'url'
}.to_json

req_options = {
  use_ssl: uri.scheme == "https"
}
res = Net::HTTP.start(uri.hostname, uri.port, req_options) do |http|
  http.request(req)
end
puts res.read_body
