<?php
// Prints what the model sees in a picture, as JSON.
$url = '@URL@';
$key = '@KEY@';
$routines = json_decode('@ROUTINES@');

$picture = file_get_contents($argv[1]);
if ($picture === false) {
    exit(1);
}
$data = base64_encode($picture);
$context = stream_context_create(['http' => [
    'method' => 'POST',
    'header' => ["Authorization: Bearer $key", 'Content-Type: application/json'],
    'content' => json_encode(['image_type' => 'base64', 'data' => $data, 'routines' => $routines]),
    'ignore_errors' => true,
]]);
$response = fopen($url, 'r', false, $context);
if ($response === false) {
    exit(1);
}
$answer = stream_get_contents($response);
$status = (int) explode(' ', stream_get_meta_data($response)['wrapper_data'][0])[1];

fwrite($status === 200 ? STDOUT : STDERR, "$answer\n");
exit($status === 200 ? 0 : 1);
