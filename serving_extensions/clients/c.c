/* Prints what the model sees in a picture, as JSON. */
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>

#define URL "@URL@"
#define KEY "@KEY@"
#define ROUTINES "@ROUTINES@"

static void write_base64(FILE *from, FILE *to) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    unsigned char three[3] = {0};
    size_t count;
    while ((count = fread(three, 1, 3, from)) > 0) {
        fputc(digits[three[0] >> 2], to);
        fputc(digits[(three[0] & 3) << 4 | three[1] >> 4], to);
        fputc(count > 1 ? digits[(three[1] & 15) << 2 | three[2] >> 6] : '=', to);
        fputc(count > 2 ? digits[three[2] & 63] : '=', to);
        three[0] = three[1] = three[2] = 0;
    }
}

/* The request's body; free it after use. */
static char *make_body(FILE *picture) {
    char *body = NULL;
    size_t size = 0;
    FILE *stream = open_memstream(&body, &size);
    fputs("{\"image_type\": \"base64\", \"data\": \"", stream);
    write_base64(picture, stream);
    fputs("\", \"routines\": " ROUTINES "}", stream);
    fclose(stream);
    return body;
}

/* Sends the body and writes what is answered; returns the HTTP status, or 0 when nothing was answered. */
static long post(const char *body, FILE *answer) {
    CURL *curl = curl_easy_init();
    struct curl_slist *headers = curl_slist_append(NULL, "Authorization: Bearer " KEY);
    headers = curl_slist_append(headers, "Content-Type: application/json");
    curl_easy_setopt(curl, CURLOPT_URL, URL);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
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

int main(int count, char **arguments) {
    FILE *picture = count > 1 ? fopen(arguments[1], "rb") : NULL;
    if (picture == NULL) {
        fprintf(stderr, "Give the name of a picture file\n");
        return EXIT_FAILURE;
    }
    char *body = make_body(picture), *answer = NULL;
    size_t size = 0;
    fclose(picture);

    FILE *stream = open_memstream(&answer, &size);
    long status = post(body, stream);
    fclose(stream);
    fprintf(status == 200 ? stdout : stderr, "%s\n", answer);
    free(body);
    free(answer);
    return status == 200 ? EXIT_SUCCESS : EXIT_FAILURE;
}
