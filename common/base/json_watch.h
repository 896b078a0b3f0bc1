// Looks through JSON text before it is parsed: how deep it nests and which keys its objects have. A parse with a
// callback would tell as well, but takes quadratic time over a list of objects (nlohmann-json 3.11).
#pragma once
#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace expertmesh {

// Derived classes throw from on_depth() and on_key() what they do not want.
class JsonWatch : public nlohmann::json_sax<nlohmann::json> {
 public:
  // Stops silently at what is no JSON: the parse will tell.
  void look_through(std::string_view text) { (void)nlohmann::json::sax_parse(text, this); }

  // What the parser calls.
  bool null() final { return true; }
  bool boolean(bool) final { return true; }
  bool number_integer(number_integer_t) final { return true; }
  bool number_unsigned(number_unsigned_t) final { return true; }
  bool number_float(number_float_t, string_t const&) final { return true; }
  bool string(string_t&) final { return true; }
  bool binary(binary_t&) final { return true; }
  bool start_object(std::size_t) final {
    on_depth(++depth_);
    on_object();
    return true;
  }
  bool key(string_t& key) final {
    on_key(key);
    return true;
  }
  bool end_object() final {
    --depth_;
    on_object_end();
    return true;
  }
  bool start_array(std::size_t) final {
    on_depth(++depth_);
    return true;
  }
  bool end_array() final {
    --depth_;
    return true;
  }
  bool parse_error(std::size_t, std::string const&, nlohmann::json::exception const&) final { return false; }

 protected:
  virtual void on_depth(std::size_t depth) = 0;  // containers open, the new one included
  virtual void on_object() {}                    // one begins
  virtual void on_key(std::string const& key) = 0;
  virtual void on_object_end() {}

 private:
  std::size_t depth_ = 0;
};

}  // namespace expertmesh
