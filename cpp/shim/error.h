// Shim: failures, each with the name of the call in which it happened.
#pragma once

#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <utility>

namespace cuelight::trtllm
{
// The executor failed in a way that is not an expected outcome. The text is "CALL: WHAT".
class CallError : public std::runtime_error
{
public:
    CallError(std::string const& call, std::string const& what)
        : std::runtime_error(call + ": " + what)
    {
    }
};

// A request or a configuration that cannot be built; the caller's fault.
class Unusable : public std::runtime_error
{
    using std::runtime_error::runtime_error;
};

// Runs `body`; whatever it throws, std::exception or not, leaves as a CallError that names `call`.
template <class Body>
auto named(char const* call, Body&& body) -> decltype(body())
{
    try
    {
        return std::forward<Body>(body)();
    }
    catch (CallError const&)
    {
        throw;
    }
    catch (std::bad_alloc const&)
    {
        throw CallError(call, "out of memory");
    }
    catch (std::exception const& error)
    {
        throw CallError(call, error.what());
    }
    catch (std::string const& text)
    {
        throw CallError(call, text);
    }
    catch (char const* text)
    {
        throw CallError(call, text);
    }
    catch (...)
    {
        throw CallError(call, "threw something that is not a std::exception");
    }
}
} // namespace cuelight::trtllm
