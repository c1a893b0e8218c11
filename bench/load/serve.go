package main

import (
	"flag"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
)

func serve(arguments []string) (any, error) {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	file := flags.String("file", "", "the requests and answers; the first answer is given")
	seconds := flags.Float64("seconds", 60, "how long to serve")
	flags.Parse(arguments)

	exchanges, err := readAll(*file, &blanks{})
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	server := grpc.NewServer(grpc.ForceServerCodecV2(raw{}), grpc.UnknownServiceHandler(
		func(_ any, stream grpc.ServerStream) error {
			var request []byte
			if err := stream.RecvMsg(&request); err != nil {
				return err
			}
			return stream.SendMsg(exchanges[0].answer)
		}))
	time.AfterFunc(lasting(*seconds), server.Stop)
	fmt.Printf("serving on %s\n", listener.Addr())
	return struct{}{}, server.Serve(listener)
}
