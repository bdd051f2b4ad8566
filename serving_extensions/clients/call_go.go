// Prints what the server answers.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"strings"
)

func main() {
	log.SetFlags(0)
	request, err := http.NewRequest("@METHOD@", "@URL@", strings.NewReader("@TEXT@"))
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer @KEY@")
	request.Header.Set("Content-Type", "@TYPE@")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		log.Fatal(err)
	}
	if response.StatusCode >= 300 {
		log.Fatalf("%s", answer)
	}
	fmt.Printf("%s\n", answer)
}
