// Prints what the server answers.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

class Predict {
    public static void main(String[] arguments) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create("@URL@"))
            .version(HttpClient.Version.HTTP_1_1)
            .header("Authorization", "Bearer @KEY@")
            .header("Content-Type", "@TYPE@")
            .method("@METHOD@", HttpRequest.BodyPublishers.ofString("@TEXT@"))
            .build();
        HttpResponse<byte[]> response = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofByteArray());

        if (response.statusCode() >= 300) {
            System.err.write(response.body());
            System.exit(1);
        }
        System.out.write(response.body());
        System.out.println();
    }
}
