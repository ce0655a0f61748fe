// Stand-in: fields with a getter and a setter, in the forms that the executor interface has.
#pragma once

// `T getName() const` and `void setName(T)`.
#define STANDIN_VALUE(T, Name, ...)                                                                                    \
public:                                                                                                                \
    [[nodiscard]] T get##Name() const { return m##Name; }                                                              \
    void set##Name(T value) { m##Name = std::move(value); }                                                            \
                                                                                                                       \
private:                                                                                                               \
    T m##Name = __VA_ARGS__;

// `optional<T> getName() const` and `void setName(T)`: once set, always set.
#define STANDIN_MAYBE(T, Name)                                                                                         \
public:                                                                                                                \
    [[nodiscard]] std::optional<T> get##Name() const { return m##Name; }                                               \
    void set##Name(T value) { m##Name = std::move(value); }                                                            \
                                                                                                                       \
private:                                                                                                               \
    std::optional<T> m##Name;

// `optional<T> getName() const` and `void setName(optional<T>)`.
#define STANDIN_OPTIONAL(T, Name)                                                                                      \
public:                                                                                                                \
    [[nodiscard]] std::optional<T> get##Name() const { return m##Name; }                                               \
    void set##Name(std::optional<T> const& value) { m##Name = value; }                                                 \
                                                                                                                       \
private:                                                                                                               \
    std::optional<T> m##Name;
