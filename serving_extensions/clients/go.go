// Prints what the model sees in a picture, as JSON.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
)

const (
	url      = "@URL@"
	key      = "@KEY@"
	routines = "@ROUTINES@"
)

func main() {
	log.SetFlags(0)
	picture, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	// json.Marshal writes bytes as base64.
	body, err := json.Marshal(map[string]any{"image_type": "base64", "data": picture, "routines": json.RawMessage(routines)})
	if err != nil {
		log.Fatal(err)
	}
	request, err := http.NewRequest("POST", url, bytes.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+key)
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		log.Fatal(err)
	}
	if response.StatusCode != http.StatusOK {
		log.Fatalf("%s", answer)
	}
	fmt.Printf("%s\n", answer)
}
