// Prints what the model sees in a picture, as JSON.
using System;
using System.IO;
using System.Net.Http;
using System.Text;

class Predict
{
    const string Url = "@URL@";
    const string Key = "@KEY@";
    const string Routines = "@ROUTINES@";

    static int Main(string[] arguments)
    {
        string data = Convert.ToBase64String(File.ReadAllBytes(arguments[0]));
        string body = "{\"image_type\": \"base64\", \"data\": \"" + data + "\", \"routines\": " + Routines + "}";
        using (var client = new HttpClient())
        using (var request = new HttpRequestMessage(HttpMethod.Post, Url))
        {
            request.Headers.TryAddWithoutValidation("Authorization", "Bearer " + Key);
            request.Content = new StringContent(body, Encoding.UTF8, "application/json");
            HttpResponseMessage response = client.SendAsync(request).GetAwaiter().GetResult();
            string answer = response.Content.ReadAsStringAsync().GetAwaiter().GetResult();

            (response.IsSuccessStatusCode ? Console.Out : Console.Error).WriteLine(answer);
            return response.IsSuccessStatusCode ? 0 : 1;
        }
    }
}
