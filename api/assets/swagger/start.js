"use strict";
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  // Nothing is sent to a validator outside.
  validatorUrl: null,
});
