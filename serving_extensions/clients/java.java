// Prints what the model sees in a picture, as JSON.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Base64;

class Predict {
    static final String URL = "@URL@";
    static final String KEY = "@KEY@";
    static final String ROUTINES = "@ROUTINES@";

    public static void main(String[] arguments) throws Exception {
        String data = Base64.getEncoder().encodeToString(Files.readAllBytes(Path.of(arguments[0])));
        String body = "{\"image_type\": \"base64\", \"data\": \"" + data + "\", \"routines\": " + ROUTINES + "}";
        HttpRequest request = HttpRequest.newBuilder(URI.create(URL))
            .version(HttpClient.Version.HTTP_1_1)
            .header("Authorization", "Bearer " + KEY)
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
        HttpResponse<byte[]> response = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofByteArray());

        if (response.statusCode() != 200) {
            System.err.write(response.body());
            System.exit(1);
        }
        System.out.write(response.body());
        System.out.println();
    }
}
