// Prints what the server answers.
using System;
using System.Net.Http;
using System.Text;

class Predict
{
    static int Main()
    {
        using (var client = new HttpClient())
        using (var request = new HttpRequestMessage(new HttpMethod("@METHOD@"), "@URL@"))
        {
            request.Headers.TryAddWithoutValidation("Authorization", "Bearer @KEY@");
            request.Content = new StringContent("@BODY@", Encoding.UTF8, "application/json");
            HttpResponseMessage response = client.SendAsync(request).GetAwaiter().GetResult();
            string answer = response.Content.ReadAsStringAsync().GetAwaiter().GetResult();

            (response.IsSuccessStatusCode ? Console.Out : Console.Error).WriteLine(answer);
            return response.IsSuccessStatusCode ? 0 : 1;
        }
    }
}
