package cli

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/sirupsen/logrus"
)

const (
	metricsPatience = 10 * time.Second // with a client, for its request and the answer
	acceptPause     = time.Second      // when there are too many open files, say
)

// servePage answers HTTP requests for the page at path, one for each connection, until the socket is closed. It is not
// http.Server that does, because with that the program has TLS, which is a sixth of its size, and each mount reads it.
func servePage(socket net.Listener, path, contentType string, page func(io.Writer), log *logrus.Logger) {
	for {
		c, err := socket.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			log.WithError(err).Errorf("%s cannot be served; trying again", path)
			time.Sleep(acceptPause)
			continue
		}
		go func() {
			defer c.Close()
			if err := answerPage(c, path, contentType, page); err != nil {
				log.WithError(err).Debugf("a request for %s was not answered", path)
			}
		}()
	}
}

// answerPage reads one request and answers it.
func answerPage(c net.Conn, path, contentType string, page func(io.Writer)) error {
	if err := c.SetDeadline(time.Now().Add(metricsPatience)); err != nil {
		return err
	}
	request, err := http.ReadRequest(bufio.NewReader(io.LimitReader(c, http.DefaultMaxHeaderBytes)))
	if err == io.EOF {
		return nil // somebody looked whether the socket is served
	}
	answer := http.Response{StatusCode: http.StatusOK, ProtoMajor: 1, ProtoMinor: 1, Request: request, Header: make(http.Header), Close: true}
	answer.Header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	switch {
	case err != nil:
		answer.StatusCode = http.StatusBadRequest
	case request.URL.Path != path:
		answer.StatusCode = http.StatusNotFound
	case request.Method != http.MethodGet && request.Method != http.MethodHead:
		answer.StatusCode = http.StatusMethodNotAllowed
		answer.Header.Set("Allow", "GET, HEAD")
	}
	var body bytes.Buffer
	if answer.StatusCode == http.StatusOK {
		page(&body)
	} else {
		contentType = "text/plain; charset=utf-8"
		fmt.Fprintln(&body, http.StatusText(answer.StatusCode))
	}
	answer.Header.Set("Content-Type", contentType)
	answer.ContentLength, answer.Body = int64(body.Len()), io.NopCloser(&body)
	return answer.Write(c)
}
