package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"time"

	authv1 "auth.texture/go/texture/auth/v1"
)

const (
	// How long a question may take while something is wrong.
	impatient = time.Second
	// How long the service may take to be there again.
	patient = 30 * time.Second
)

// playFailure asks while something is wrong. Of what goes wrong in the course of time the other side decides when: it is
// told READY, and answers with a line.
func playFailure(name string) {
	connection := callerFrom("CALLER").connect()
	defer connection.Close()
	auth := authv1.NewAuthorizeServiceClient(connection)
	question := &authv1.AuthorizeRequest{ApiKey: os.Getenv("API_KEY"), Permission: "devices:list"}
	during := os.Getenv("DURING") != ""
	if during {
		_, err := authorize(auth, question, patient)
		must(err)
		awaitTurn()
	}
	answer, err := authorize(auth, question, impatient)
	if err == nil {
		must(fmt.Errorf("%s: it was answered: %v", name, answer.Decision))
	}
	found := failureOf(err)
	fmt.Println("FAILURE", name, nameOf(found.code), dash(found.reason))
	allowed, http := ask(context.Background(), auth, question)
	if allowed || http != 503 {
		must(fmt.Errorf("%s: the helper said %t, %d", name, allowed, http))
	}
	if !during {
		return
	}
	awaitTurn()
	for end := time.Now().Add(patient); ; time.Sleep(50 * time.Millisecond) {
		answer, err = authorize(auth, question, impatient)
		if err == nil {
			fmt.Println("RECOVERED", name)
			return
		}
		if time.Now().After(end) {
			must(err)
		}
	}
}

func authorize(
	auth authv1.AuthorizeServiceClient, question *authv1.AuthorizeRequest, limit time.Duration,
) (*authv1.AuthorizeResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return auth.Authorize(ctx, question)
}

var turns = bufio.NewReader(os.Stdin)

func awaitTurn() {
	fmt.Println("READY")
	_, err := turns.ReadString('\n')
	must(err)
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
