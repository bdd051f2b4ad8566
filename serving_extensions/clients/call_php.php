<?php
// Prints what the server answers.
$context = stream_context_create(['http' => [
    'method' => '@METHOD@',
    'header' => [
        'Authorization: Bearer @KEY@',
        'Content-Type: @TYPE@',
    ],
    'content' => '@BODY@',
    'ignore_errors' => true,
]]);
$response = fopen('@URL@', 'r', false, $context);
if ($response === false) {
    exit(1);
}
$answer = stream_get_contents($response);
$status = (int) explode(' ', stream_get_meta_data($response)['wrapper_data'][0])[1];
$good = $status >= 200 && $status < 300;

fwrite($good ? STDOUT : STDERR, "$answer\n");
exit($good ? 0 : 1);
