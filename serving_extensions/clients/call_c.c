/* Prints what the server answers. */
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>

/* Makes the call and writes what is answered; returns the HTTP status, or 0 when nothing was answered. */
static long call(FILE *answer) {
    CURL *curl = curl_easy_init();
    struct curl_slist *headers = NULL;
    headers = curl_slist_append(headers, "Authorization: Bearer @KEY@");
    headers = curl_slist_append(headers, "Content-Type: @TYPE@");
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, "@BODY@");
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, "@METHOD@");
    curl_easy_setopt(curl, CURLOPT_URL, "@URL@");
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, answer);
    CURLcode result = curl_easy_perform(curl);
    long status = 0;
    if (result == CURLE_OK)
        curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    else
        fprintf(answer, "%s", curl_easy_strerror(result));
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    return status;
}

int main(void) {
    char *answer = NULL;
    size_t size = 0;
    FILE *stream = open_memstream(&answer, &size);
    long status = call(stream);
    fclose(stream);
    int good = status >= 200 && status < 300;
    fprintf(good ? stdout : stderr, "%s\n", answer);
    free(answer);
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
