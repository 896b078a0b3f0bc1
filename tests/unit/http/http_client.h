// A blocking HTTP client for tests: one connection, requests as raw text.
#pragma once
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <nlohmann/json.hpp>
#include <string>

namespace expertmesh::test {

struct Answer {
  int status = 0;
  bool keep_alive = false;
  boost::beast::http::fields headers;
  std::string body;
  [[nodiscard]] nlohmann::json json() const { return nlohmann::json::parse(body); }
  [[nodiscard]] std::string header(char const* name) const { return std::string(headers[name]); }
};

class HttpClient {
 public:
  explicit HttpClient(std::uint16_t port, int receive_buffer = 0) {
    boost::asio::ip::tcp::endpoint const server(boost::asio::ip::address_v4::loopback(), port);
    socket_.open(server.protocol());
    if (receive_buffer > 0) socket_.set_option(boost::asio::socket_base::receive_buffer_size(receive_buffer));
    socket_.connect(server);
  }

  void send(std::string const& text) { boost::asio::write(socket_, boost::asio::buffer(text)); }
  Answer receive(bool to_head = false) {
    namespace http = boost::beast::http;
    http::response_parser<http::string_body> parser;
    parser.skip(to_head);
    parser.body_limit(std::size_t{1} << 30);
    http::read(socket_, buffer_, parser);
    auto message = parser.release();
    return {static_cast<int>(message.result_int()), message.keep_alive(), message.base(), message.body()};
  }
  Answer get(std::string const& target) {
    send("GET " + target + " HTTP/1.1\r\nHost: x\r\n\r\n");
    return receive();
  }
  static std::string post_text(std::string const& target, std::string const& body, std::string const& headers = "") {
    return "POST " + target + " HTTP/1.1\r\nHost: x\r\n" + headers + "Content-Length: " + std::to_string(body.size()) +
           "\r\n\r\n" + body;
  }
  Answer post(std::string const& target, std::string const& body, std::string const& headers = "") {
    send(post_text(target, body, headers));
    return receive();
  }
  // Reads until `text` has come; throws at the end of the connection.
  void receive_until(std::string const& text) {
    std::string seen;
    for (char byte = 0; seen.find(text) == std::string::npos; seen += byte)
      boost::asio::read(socket_, boost::asio::buffer(&byte, 1));
  }
  // Reads what is left until the server closes the connection.
  std::string rest() {
    std::string text;
    boost::system::error_code error;
    boost::asio::read(socket_, boost::asio::dynamic_buffer(text), error);
    return text;
  }
  void close() { socket_.close(); }

 private:
  boost::asio::io_context io_;
  boost::asio::ip::tcp::socket socket_{io_};
  boost::beast::flat_buffer buffer_;
};

}  // namespace expertmesh::test
